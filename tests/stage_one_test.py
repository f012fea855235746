# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Stage 1 with all its losses, and the feature network in front of it."""

import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from program import OPTIMIZED

from rq.cli import run_checks
from rq.config import ConfigError, default, validate
from rq.convert import lpips_weights, npz_file
from rq.data import DataError
from rq.evaluation.extractors import Found
from rq.evaluation.reconstruction import make_reconstructor
from rq.metrics import moments
from rq.metrics.distances import frechet_distance
from rq.models.networks.lpips import own_distance
from rq.parallel import sharding
from rq.training import loop
from rq.training.stages import FeaturesStage, RQVAEStage
from rq.visualize import to_uint8

ROOT = pathlib.Path(__file__).parent.parent
BATCH = 8
SIDE = 16


def reduced_imagenet(**changes):
    """The shipped ImageNet config at reduced width, with all its losses."""
    path = ROOT / "configs/imagenet.py"
    spec = importlib.util.spec_from_file_location("imagenet_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.update_from_flattened_dict(
        {
            "data.resolution": SIDE,
            "rqvae.batch_size": BATCH,
            "rqvae.steps": 100,
            "rqvae.model.ch": 32,
            "rqvae.model.ch_mult": (1, 1),
            "rqvae.model.num_res_blocks": 1,
            "rqvae.model.z_channels": 16,
            "rqvae.model.embed_dim": 8,
            "rqvae.model.num_codes": (64,),
            "rqvae.adversarial.ndf": 8,
            "rqvae.optimizer.warmup_steps": 0,
        }
        | changes
    )
    validate(config)
    return config


SMALL = {  # without the network of LPIPS, which takes long to compile
    "rqvae.loss.perceptual": "features",
    "features.model.widths": (8, 8),
    "features.model.convs": (1, 1),
    "rqvae.model.attn_resolutions": (),
}
QUICK_ADVERSARY = {
    "rqvae.adversarial.optimizer.learning_rate": 1e-2,
    "rqvae.optimizer.learning_rate": 4e-5,
}


def one_device():
    return sharding.make_mesh(devices=jax.devices()[:1])


def batch():
    """Blocks of colour with noise, brighter at the bottom, uint8.

    Without noise many vectors would be equal, and codes a matter of rounding.
    """
    rng = np.random.default_rng(0)
    blocks = rng.uniform(0, 60, (BATCH, 4, 4, 3)).repeat(SIDE // 4, 1)
    noise = rng.uniform(0, 15, (BATCH, SIDE, SIDE, 3))
    image = blocks.repeat(SIDE // 4, 2) + noise
    image += np.linspace(0, 180, SIDE)[None, :, None, None]
    label = np.arange(BATCH, dtype=np.int32) % 3
    return {"image": image.astype(np.uint8), "label": label}


def run(config, mesh, steps, make=RQVAEStage):
    """States and metrics on the host: `states[i]` is after i steps, 0 to `steps`."""
    stage = make(config, mesh, lambda: iter([]))
    boxed = jax.eval_shape(stage.init, jax.random.key(1))
    shardings = sharding.state_shardings(boxed, mesh)
    # Not as one program: what each array needs is compiled once for all tests.
    state = jax.tree.map(jnp.copy, sharding.unbox(stage.init(jax.random.key(1))))
    state = jax.device_put(state, shardings)
    states, history = [], []
    step = loop.compiled(stage.train_step, shardings, mesh)
    with sharding.context(mesh):
        placed = sharding.shard_batch(batch(), mesh)
        if steps > 3:
            step = step.lower(state, placed).compile(OPTIMIZED)
        for _ in range(steps):
            states.append(on_host(state))
            state, metrics = step(state, placed)
            history.append(jax.device_get(metrics))
    return [*states, on_host(state)], history


def on_host(state):
    """A copy, which outlives the donation of the state."""
    return jax.tree.map(np.array, state.replace(key=jax.random.key_data(state.key)))


@functools.cache
def plain_adversary():
    """States and metrics of 12 steps with a quick discriminator, not regularised."""
    return run(reduced_imagenet(**SMALL, **QUICK_ADVERSARY), one_device(), 12)


def assert_close(a, b, rtol, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, atol), a, b)


def relative_error(a, b):
    """Compares two trees as vectors."""
    squares = jax.tree.map(lambda x, y: (np.sum((x - y) ** 2), np.sum(y**2)), a, b)
    wrong, whole = np.asarray(jax.tree.leaves(squares)).reshape(-1, 2).sum(0)
    return (wrong / whole) ** 0.5


# All losses on one device and on eight


@pytest.mark.parametrize(
    ("perceptual", "gradient_error"),
    # Rounding moves a few units of VGG16 over the kink of their ReLU, where gradients
    # jump: a share of 1e-6 of the units makes 1e-3 of the gradient's norm.
    [("lpips", 1e-2), ("none", 1e-4)],
)
@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)])
@pytest.mark.slow
def test_imagenets_step_on_eight_devices_is_that_on_one(
    sizes, perceptual, gradient_error
):
    """LPIPS, discriminator with its batch statistics, codebook: the global batch's."""
    # A large epsilon keeps Adam linear in the gradient: see stages_test.py. At the
    # config's own learning rate rounding does not decide the codes of the second step.
    changes = {"rqvae.optimizer.eps": 1.0, "rqvae.adversarial.optimizer.eps": 1.0}
    if perceptual == "none":
        changes |= {
            "rqvae.loss.perceptual": "none",
            "rqvae.loss.perceptual_weight": 0.0,
        }
    config = reduced_imagenet(**changes)
    (*_, one), history = run(config, one_device(), 2)
    (*_, many), other_history = run(config, sharding.make_mesh(*sizes), 2)
    for metrics, other in zip(history, other_history, strict=True):
        assert all(np.isfinite(value) for value in metrics.values())
        for name, value in metrics.items():
            np.testing.assert_allclose(other[name], value, 1e-3, 1e-5, err_msg=name)
    assert {"loss/generator", "adaptive_weight"} <= set(history[0])
    assert ("loss/perceptual" in history[0]) == (perceptual == "lpips")
    for part in ("embedding", "counts", "sums"):
        a, b = (getattr(state.codebook["state"], part) for state in (many, one))
        np.testing.assert_allclose(a, b, 1e-5, 1e-5, err_msg=part)
    assert_close(
        many.adversary["batch_stats"], one.adversary["batch_stats"], 1e-4, 1e-5
    )
    # After so small a step the parameters say little; first moments are gradients.
    for pick in (lambda s: s.opt_state, lambda s: s.adversary["opt_state"]):
        error = relative_error(
            optax.tree.get(pick(many), "mu"), optax.tree.get(pick(one), "mu")
        )
        assert error < gradient_error
    assert_close(many.params, one.params, 1e-6, 1e-6)


# The discriminator


@pytest.mark.slow
def test_before_its_start_the_discriminator_changes_nothing():
    waiting = reduced_imagenet(**SMALL, **{"rqvae.adversarial.start": 2})
    without = reduced_imagenet(**SMALL, **{"rqvae.adversarial.weight": 0.0})
    (first, _, state, after), history = run(waiting, one_device(), 3)
    assert_close(state.adversary, first.adversary, 0, 0)
    assert history[1]["adaptive_weight"] == 0
    (*_, plain), _ = run(without, one_device(), 2)
    # The split of the key for initialisation is the same with and without it.
    assert_close(state.params, plain.params, 1e-5, 1e-6)
    assert history[2]["adaptive_weight"] > 0
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()),
        after.adversary["params"],
        first.adversary["params"],
    )
    assert any(jax.tree.leaves(moved))


@pytest.mark.slow
def test_the_discriminator_learns_to_tell_and_its_losses_are_weighed():
    _, history = plain_adversary()
    gap = [m["logits/real"] - m["logits/fake"] for m in history]
    assert gap[-1] > gap[0] + 0.5
    assert history[-1]["loss/discriminator"] < history[0]["loss/discriminator"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["r1_weight", "lecam_weight"])
def test_regularisation_calms_the_discriminator(name):
    regular = QUICK_ADVERSARY | {f"rqvae.adversarial.{name}": 1.0}
    _, history = plain_adversary()
    _, calmed = run(reduced_imagenet(**SMALL, **regular), one_device(), 12)
    assert all(np.isfinite(v) for m in calmed for v in m.values())
    gap, calm_gap = (
        abs(m[-1]["logits/real"] - m[-1]["logits/fake"]) for m in (history, calmed)
    )
    assert calm_gap < gap


@pytest.mark.slow
def test_all_losses_train_with_accumulation():
    config = reduced_imagenet(
        **SMALL, **{"rqvae.grad_accum_steps": 2, "rqvae.loss.entropy_weight": 0.1}
    )
    states, history = run(config, one_device(), 2)
    assert states[-1].step == 2
    assert all(np.isfinite(v) for m in history for v in m.values())
    assert "loss/entropy" in history[0]


# The feature network and the perceptual loss on it


@pytest.mark.parametrize("objective", ["class", "rotation"])
def test_the_feature_network_learns_its_objective(objective):
    config = reduced_imagenet(
        **SMALL,
        **{
            "stages": ("features", "rqvae"),
            "features.objective": objective,
            "features.batch_size": BATCH,
            "features.steps": 150,
            "features.optimizer.warmup_steps": 5,
            "features.optimizer.learning_rate": 1e-2,
            "data.num_classes": 3,
            "transformer.condition": "none",
        },
    )
    _, history = run(config, one_device(), 150, FeaturesStage)
    last = np.mean([m["loss"] for m in history[-8:]])
    assert last < 0.7 * history[0]["loss"]


@pytest.fixture(scope="module")
def evaluated():
    """A stage, its reconstructor and its state, and two batches with a filler each."""
    config, mesh = reduced_imagenet(**SMALL), one_device()
    mask = np.arange(BATCH) < BATCH - 1
    turned = {"image": batch()["image"][:, ::-1]}
    batches = [batch() | {"mask": mask}, batch() | turned | {"mask": mask}]
    reconstructor = make_reconstructor(config, mesh)
    stage = RQVAEStage(
        config, mesh, lambda: iter(batches), evaluator=reconstructor.evaluate
    )
    state = sharding.unbox(stage.init(jax.random.key(0)))
    return stage, reconstructor, state, batches


@pytest.mark.slow
def test_evaluation_measures_everything_by_depth(evaluated):
    stage, reconstructor, state, batches = evaluated
    metrics = stage.evaluate(state)
    names = ("mse", "psnr", "ssim", "feature_distance", "usage", "perplexity")
    wanted = {f"{n}/depth_{d}" for n in (*names, "entropy_bits") for d in range(1, 5)}
    assert set(metrics) == wanted | {"usage/all"}
    assert all(np.isfinite(value) for value in metrics.values())
    np.testing.assert_allclose(
        metrics["perplexity/depth_1"], 2 ** metrics["entropy_bits/depth_1"], rtol=1e-6
    )
    originals, outputs = reconstructor.outputs(state.model_variables(), batches, 3)
    assert originals.shape == (3, SIDE, SIDE, 3) and outputs.shape[:2] == (4, 3)
    assert -1 <= originals.min() and originals.max() <= 1


class Pixels:
    """An extractor: a few pixels of uint8 images."""

    label = "pixels"

    def __call__(self, images):
        assert images.dtype == np.uint8
        return Found(images[:, ::5, ::5].reshape(len(images), -1)[:, :6], None, None)


@pytest.mark.slow
def test_further_distances_of_reconstructions_by_depth(evaluated):
    """rFID between sets of uint8 images; LPIPS as evaluation has that of the loss."""
    stage, reconstructor, state, batches = evaluated
    network = stage.distance, state.frozen["distance"]
    variables = state.model_variables()
    found = reconstructor.compare(variables, batches, Pixels(), network)
    expected = stage.evaluate(state)
    originals, outputs = reconstructor.outputs(variables, batches, 99)
    real = Pixels()(to_uint8(originals)).pool
    for d in range(1, 5):
        name = f"feature_distance/depth_{d}"
        assert found[f"lpips/depth_{d}"] == pytest.approx(expected[name], rel=1e-4)
        made = Pixels()(to_uint8(outputs[d - 1])).pool
        a, b = moments.of(real), moments.of(made)
        value = frechet_distance(a.mean, a.covariance, b.mean, b.covariance).value
        assert found[f"rFID (pixels)/depth_{d}"] == pytest.approx(value, rel=1e-9)
    assert set(reconstructor.compare(variables, batches, lpips=network)) == {
        f"lpips/depth_{d}" for d in range(1, 5)
    }


def test_own_features_measure_zero_for_equal_images_and_more_for_others():
    stage = FeaturesStage(reduced_imagenet(**SMALL), one_device(), lambda: iter([]))
    state = sharding.unbox(stage.init(jax.random.key(0)))
    network = state.params["network"]
    distance, params = own_distance(network, (8, 8), (1, 1), 3)
    images = jax.random.uniform(jax.random.key(0), (2, SIDE, SIDE, 3), minval=-1)
    noise = jax.random.normal(jax.random.key(1), images.shape)

    @jax.jit
    def measure(scale):
        return distance.apply({"params": params}, images, images + scale * noise)

    np.testing.assert_allclose(measure(0.0), 0, atol=1e-7)
    assert (measure(0.05) > 0).all() and (measure(0.2) > measure(0.05)).all()
    assert measure(0.1).dtype == jnp.float32


# What must be there before compute


def test_missing_lpips_weights_say_the_command(tmp_path):
    config = default()
    for name in ("", str(tmp_path / "gone.npz")):
        config.rqvae.lpips_weights = name
        with pytest.raises(DataError, match="rq convert lpips"):
            run_checks.check_perceptual(config, tmp_path)
    wrong, narrow = tmp_path / "wrong.npz", tmp_path / "narrow.npz"
    wrong.write_bytes(b"no archive")
    npz_file.save(narrow, lpips_weights.KIND, {"head_0": np.zeros(8)}, [8])
    for path, message in ((wrong, "wrong.npz holds something"), (narrow, "widths")):
        config.rqvae.lpips_weights = str(path)
        with pytest.raises(DataError, match=message):
            run_checks.check_perceptual(config, tmp_path)


@pytest.mark.parametrize("about", [None, [3, 4]])
def test_converted_weights_are_written_and_read(tmp_path, about):
    params = {"a": {"kernel": np.arange(6.0).reshape(2, 3)}, "b": np.float32(2)}
    path = tmp_path / "x.npz"
    npz_file.save(path, "toy", params, about)
    found, read = npz_file.load(path, "toy", "--flag", "make it")
    assert found == about
    jax.tree.map(np.testing.assert_array_equal, read, params)
    with pytest.raises(ValueError, match="must end in .npz"):
        npz_file.save(tmp_path / "x.bin", "toy", params)
    with pytest.raises(DataError, match="--flag=.*x.npz holds something else: make it"):
        npz_file.load(path, "another", "--flag", "make it")
    np.savez(path, kind="toy")  # without the rest
    with pytest.raises(DataError, match="holds something else"):
        npz_file.load(path, "toy", "--flag", "make it")


def test_own_features_need_their_stage(tmp_path):
    config = default()
    config.rqvae.loss.perceptual = "features"
    with pytest.raises(ConfigError, match="'features' before 'rqvae'"):
        run_checks.check_perceptual(config, tmp_path)
    config.stages = ("features", "rqvae")
    run_checks.check_perceptual(config, tmp_path)
    config.stages = ("rqvae",)
    config.rqvae.loss.perceptual = "none"
    run_checks.check_perceptual(config, tmp_path)
