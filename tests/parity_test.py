# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The package against the authors' model, on every golden file it can answer for.

The folder is `tests/golden`, or what the environment variable RQ_GOLDEN_DIR names.
Shapes, flags and names come from the files, so other files of the format serve as well.
Tolerances are those of the folder's README: 1e-4 for values, 1e-3 of an array's maximum
for gradients, integers exactly.
"""

import functools
import json
import math
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from rq import convert
from rq.config import SamplingConfig, default
from rq.convert import discriminator_weights as convert_discriminator
from rq.convert import lpips_weights as convert_lpips
from rq.convert.names import StateDict, one_or_each
from rq.convert.rqvae_weights import codebook_from_torch
from rq.metrics import distances, moments
from rq.models import quantizer
from rq.models.codebook import Codebook, Update, update_codebook
from rq.models.networks.lpips import VGG16_CONVS, unit
from rq.parallel import sharding
from rq.sampling import make_filters, program
from rq.sampling.filters import filter_logits
from rq.training import losses
from rq.training import optimizer as optim
from rq.training.stages import RQVAEStage

FOLDER = pathlib.Path(
    os.environ.get("RQ_GOLDEN_DIR", pathlib.Path(__file__).parent / "golden")
)
FAMILIES = (
    "rqvae_",
    "ema_",
    "gan_",
    "lpips_",
    "rqtransformer_",
    "sampling_",
    "schedule_",
    "optimizer_",
    "metrics_",
)
CHECKPOINTS = "ckpt_expected.npz"
UNKNOWN = np.float32(-1e30)  # stands for a number that a file does not have


def files(prefix):
    """Parameters: the golden files of a family, by name."""
    return [
        pytest.param(path, id=path.stem)
        for path in sorted(FOLDER.glob(f"{prefix}*.npz"))
    ]


class Golden:
    """One file: its config, and its arrays by name or below a prefix."""

    def __init__(self, path):
        self._file = np.load(path)
        self.config = json.loads(str(self._file["config"]))

    def __getitem__(self, name):
        return self._file[name]

    def __contains__(self, name):
        return name in self._file.files

    def below(self, prefix):
        names = [name for name in self._file.files if name.startswith(prefix)]
        return {name.removeprefix(prefix): self._file[name] for name in names}


def close(actual, expected, tolerance=1e-4, relative=None):
    relative = tolerance if relative is None else relative
    np.testing.assert_allclose(actual, expected, relative, tolerance)


def apply(model, variables, *args, method="__call__"):
    """`model.apply`, compiled: faster than op by op, and what users run."""
    arrays = [x for x in args if isinstance(x, (jax.Array, np.ndarray))]
    numbers = tuple(x for x in args if isinstance(x, int))
    return _apply(model, method, numbers, variables, arrays)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _apply(model, method, numbers, variables, arrays):
    return model.apply(variables, *arrays, *numbers, method=method)


def nhwc(images):
    return jnp.asarray(np.moveaxis(images, 1, -1))


def nchw(images):
    return np.moveaxis(np.asarray(images), -1, 1)


def check_gradients(golden, gradients):
    """Norms of all named gradients and the stored ones, but for insensitive ones."""
    names = golden.config["grad_norm_names"]
    insensitive = set(golden.config.get("insensitive", ()))
    norms = np.array([np.linalg.norm(gradients[name]) for name in names])
    expected = golden["out/grad_norms"]
    real = expected > 1e-5 * expected.max()
    real &= np.array([name not in insensitive for name in names])
    assert real.sum() > len(names) // 2
    np.testing.assert_allclose(norms[real], expected[real], 1e-3)
    for name, gradient in golden.below("out/grad/").items():
        bound = 1e-3 * np.abs(gradient).max()
        np.testing.assert_allclose(gradients[name], gradient, 0, max(bound, 1e-9))


def test_every_file_is_answered_for_or_named():
    """No golden file is passed over in silence."""
    names = [path.name for path in sorted(FOLDER.glob("*.npz"))]
    assert names, f"no golden files in {FOLDER}"
    answered = [n for n in names if n.startswith(FAMILIES) or n == CHECKPOINTS]
    assert not set(names) - set(answered)


# RQ-VAE


@pytest.fixture(params=files("rqvae_"), scope="module")
def rqvae(request):
    golden = Golden(request.param)
    model, variables = convert.from_torch(golden.config["arch"], golden.below("state/"))
    return golden, model, variables


def test_rqvae_conversion_is_inverted_exactly(rqvae):
    golden, model, variables = rqvae
    state_dict = golden.below("state/")
    back = convert.to_torch(model, variables)
    assert back.keys() == state_dict.keys()
    for name, array in state_dict.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_rqvae_forward(rqvae):
    golden, model, variables = rqvae
    z = apply(model, variables, nhwc(golden["in/x"]), method="encode")
    close(z, golden["out/z_e"])
    if "out/z_e_code_shape" in golden:
        close(quantizer.pack(z, *model.code_shape[:2]), golden["out/z_e_code_shape"])
    z_q, codes, commitment = apply(model, variables, z, method="quantize")
    np.testing.assert_array_equal(codes, golden["out/codes"])
    close(z_q, golden["out/z_q"])
    close(commitment, golden["out/commitment_loss"])
    close(nchw(apply(model, variables, z_q, method="decode")), golden["out/recon"])
    images = nhwc(golden["in/x"])
    np.testing.assert_array_equal(
        apply(model, variables, images, method="codes"), golden["out/codes"]
    )


def test_rqvae_partial_sums_and_first_distances(rqvae):
    golden, model, variables = rqvae
    packed = quantizer.pack(jnp.asarray(golden["out/z_e"]), *model.code_shape[:2])
    codebook = variables["codebook"]["state"]
    sizes = None if model.shared_codebook else model.sizes
    codes, sums = quantizer.residual_quantize(packed, codebook, model.depth, sizes)
    np.testing.assert_array_equal(codes, golden["out/codes"])
    close(sums, golden["out/quant_list"])
    first = codebook.embedding
    first = (first if first.ndim == 2 else first[0])[: model.sizes[0]]
    close(quantizer.distances(packed, first), golden["out/distances_0"])


def test_rqvae_soft_codes(rqvae):
    golden, model, variables = rqvae
    if "out/soft_codes_t05" not in golden:
        assert len(set(model.sizes)) > 1, "only unequal codebooks have no soft codes"
    z = jnp.asarray(golden["out/z_e"])
    soft, codes = model.apply(variables, z, 0.5, method="soft_codes")
    np.testing.assert_array_equal(codes, golden["out/codes"])
    close(jnp.sum(soft, axis=-1), np.ones(codes.shape))
    if "out/soft_codes_t05" in golden:
        close(soft, golden["out/soft_codes_t05"])


def test_rqvae_decodes_codes_whole_and_in_part(rqvae):
    golden, model, variables = rqvae
    codes = jnp.asarray(golden["out/codes"])

    def run(method, *args):
        return apply(model, variables, *args, method=method)

    close(nchw(run("decode_codes", codes)), golden["out/decode_code"])
    random_images = run("decode_codes", jnp.asarray(golden["in/random_codes"]))
    close(nchw(random_images), golden["out/decode_code_random"])

    vectors = run("embed_codes", codes)
    close(jnp.sum(vectors, axis=-2), golden["out/embed_code"])
    deep = "out/embed_code_with_depth"
    by_depth = quantizer.embed(codes, variables["codebook"]["state"].embedding)
    close(by_depth, golden[deep])
    if f"{deep}_latent" in golden:
        close(vectors, golden[f"{deep}_latent"])
    for depth in range(model.depth):
        chosen = vectors[..., depth, :]
        close(chosen, golden[f"out/embed_partial_select_{depth}"])
        images = nchw(run("decode", chosen))
        close(images, golden[f"out/decode_partial_select_{depth}"])
        added = jnp.sum(run("embed_codes", codes, depth + 1), axis=-2)
        close(added, golden[f"out/embed_partial_add_{depth}"])
        images = nchw(run("decode_codes", codes, depth + 1))
        close(images, golden[f"out/decode_partial_add_{depth}"])


def test_rqvae_losses_and_gradients(rqvae):
    golden, model, variables = rqvae
    settings = golden.config["arch"]["hparams"]
    kind = settings.get("loss_type", "l1")
    images = nhwc(golden["in/x"])

    def loss_fn(params):
        outputs, _, commitment = model.apply({**variables, "params": params}, images)
        reconstruction = losses.reconstruction(images, outputs, kind)
        weight = settings.get("latent_loss_weight", 0.25)
        total = reconstruction + weight * commitment
        return total, (reconstruction, commitment)

    grad_fn = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (total, parts), gradients = grad_fn(variables["params"])
    close(total, golden["out/loss_total"])
    close(parts[0], golden["out/loss_recon"])
    close(parts[1], golden["out/loss_latent"])
    gradients = convert.to_torch(model, {**variables, "params": gradients})
    check_gradients(golden, gradients)


# The codebook's moving averages


def ema_files(kind):
    chosen = []
    for parameter in files("ema_"):
        config = Golden(parameter.values[0]).config
        if config.get("class", "ExponentialMovingAverage") == kind:
            chosen.append(parameter)
    return chosen


def codebook_of(arrays, prefix=""):
    """A codebook of one depth from the buffers, without its padding row."""
    return Codebook(
        jnp.asarray(arrays[f"{prefix}weight"][:-1]),
        jnp.asarray(arrays[f"{prefix}cluster_size_ema"]),
        jnp.asarray(arrays[f"{prefix}embed_ema"]),
    )


def ema_tolerance(golden):
    """Averages that start from empty counts explode: relative there."""
    fresh = not golden["state/cluster_size_ema"].any()
    return dict(tolerance=0, relative=1e-4) if fresh else dict(tolerance=1e-5)


def check_codebook(codebook, arrays, prefix="", **tolerance):
    close(codebook.counts, arrays[f"{prefix}cluster_size_ema"], **tolerance)
    close(codebook.sums, arrays[f"{prefix}embed_ema"], **tolerance)
    close(codebook.embedding, arrays[f"{prefix}weight"][:-1], **tolerance)


@pytest.mark.parametrize("path", ema_files("VQEmbedding"))
def test_codebook_update(path):
    golden = Golden(path)
    config = golden.config
    codebook = codebook_of(golden.below("state/"))
    update = Update(config["decay"], config["eps"], config["restart_unused_codes"])
    for step, vectors in enumerate(golden["in/vectors"]):
        before = codebook
        codes = quantizer.nearest(jnp.asarray(vectors), codebook.embedding)
        np.testing.assert_array_equal(codes, golden["out/codes"][step])
        close(codebook.embedding[codes], golden["out/quants"][step], 1e-5)
        codebook = update_codebook(
            codebook, jnp.asarray(vectors), codes, update, jax.random.key(step)
        )
        arrays = golden.below(f"out/after{step + 1}/")
        if "out/dead" not in golden:
            check_codebook(codebook, arrays, **ema_tolerance(golden))
            continue

        plain = update_codebook(
            before, jnp.asarray(vectors), codes, update._replace(restart=False)
        )
        close(plain.counts, golden["out/cluster_size_before_restart"], 1e-5)
        dead = golden["out/dead"].astype(bool)
        np.testing.assert_array_equal(plain.counts < 1, dead)
        close(codebook.counts, arrays["cluster_size_ema"], 1e-5)
        close(codebook.sums[~dead], arrays["embed_ema"][~dead], 1e-5)
        close(codebook.embedding[~dead], arrays["weight"][:-1][~dead], 1e-5)
        check_restarted(np.asarray(codebook.sums)[dead], vectors, config)


def check_restarted(rows, vectors, config):
    """Distinct vectors of the batch; with a little noise where there are too few."""
    if len(vectors) >= config["n_embed"]:
        sources = [np.flatnonzero((vectors == row).all(axis=1)) for row in rows]
        assert all(len(source) for source in sources)
        assert len({int(source[0]) for source in sources}) == len(rows)
        return
    bound = config["noise_upper_bound"]
    for row in rows:
        difference = row - vectors
        assert ((difference >= -1e-6) & (difference <= bound + 1e-6)).all(axis=1).any()


@pytest.mark.parametrize("path", ema_files("RQBottleneck"))
def test_codebook_updates_follow_each_other_over_depth(path):
    golden = Golden(path)
    config = golden.config
    depth, shared = config["code_shape"][-1], config["shared_codebook"]
    sizes = one_or_each(config["n_embed"]) * (depth if shared else 1)
    sizes = sizes if len(sizes) == depth else sizes * depth

    def state(arrays):
        if "weight" in arrays:
            return codebook_of(arrays)
        names = {f"quantizer.{name}": array for name, array in arrays.items()}
        dim = golden["in/x"].shape[-1]
        dim *= math.prod(config["latent_shape"][:2]) // math.prod(
            config["code_shape"][:2]
        )
        return codebook_from_torch(StateDict(names), sizes, shared, dim)

    codebook = state(golden.below("state/"))
    decay = jnp.asarray(one_or_each(config["decay"]), jnp.float32)
    update = Update(decay, config["eps"], config["restart_unused_codes"])
    for step, x in enumerate(golden["in/x"]):
        x = quantizer.pack(jnp.asarray(x), *config["code_shape"][:2])
        result = quantizer.quantize(
            x,
            codebook,
            depth=depth,
            sizes=None if shared else sizes,
            update=update,
            key=jax.random.key(0),
        )
        codebook = result.codebook
        np.testing.assert_array_equal(result.codes, golden["out/codes"][step])
        z_q = quantizer.straight_through(x, result.sums[-1])
        z_q = quantizer.unpack(z_q, *config["latent_shape"][:2])
        close(z_q, golden["out/z_q"][step], 1e-5)
        commitment = quantizer.commitment_loss(x, result.sums)
        close(commitment, golden["out/commitment_loss"][step], 1e-5)
        expected = state(golden.below(f"out/after{step + 1}/"))
        for field in ("embedding", "counts", "sums"):
            close(getattr(codebook, field), getattr(expected, field), 1e-5)


@pytest.mark.parametrize("path", ema_files("ExponentialMovingAverage"))
def test_parameter_average(path):
    golden = Golden(path)
    average, new = golden.below("state/"), golden.below("in/model/")
    for step in golden.config["steps"]:
        expected = golden.below(f"out/step_{step}/")
        averaged = optim.ema_update(
            {name: average[name] for name in expected},
            {name: new[name] for name in expected},
            golden.config["mu"],
            step,
        )
        for name, array in expected.items():
            close(averaged[name], array, 1e-6)


# RQ-Transformer


class Stage2:
    """A golden transformer with its codebook."""

    def __init__(self, path):
        self.golden = golden = Golden(path)
        self.config = golden.config
        self.state_dict = golden.below("state/")
        self.model, variables = convert.from_torch(self.config["arch"], self.state_dict)
        self.params = variables["params"]
        self._apply = jax.jit(self.model.apply, static_argnames="condition_logits")
        quantization = self.config["aux_arch"]["hparams"]
        self.code_shape = tuple(quantization["code_shape"])
        depth, shared = self.code_shape[-1], quantization.get("shared_codebook", False)
        sizes = one_or_each(quantization["n_embed"])
        self.codebook = codebook_from_torch(
            StateDict(golden.below("aux_state/")),
            sizes if len(sizes) == depth else sizes * depth,
            shared,
            golden["aux_state/quantizer.codebooks.0.weight"].shape[-1],
        )
        self.cond = jnp.asarray(golden["in/cond"]) if "in/cond" in golden else None

    def logits(self, codes, params=None, **kwargs):
        params = self.params if params is None else params
        arguments = (codes, self.cond, self.codebook.embedding)
        return self._apply({"params": params}, *arguments, **kwargs)

    def sample(self, **kwargs):
        return program.sample(
            self.model,
            self.params,
            self.codebook.embedding,
            self.cond,
            jax.random.key(0),
            batch=len(self.golden["in/codes"]),
            **kwargs,
        )

    def from_features(self):
        z = quantizer.pack(jnp.asarray(self.golden["in/z"]), *self.code_shape[:2])
        temperature = self.config["soft_target_temp"]
        depth = self.code_shape[-1]
        return quantizer.quantize(
            z, self.codebook, depth=depth, temperature=temperature
        )


@pytest.fixture(params=files("rqtransformer_"), scope="module")
def stage2(request):
    return Stage2(request.param)


def test_transformer_conversion_is_inverted_exactly(stage2):
    back = convert.to_torch(stage2.model, {"params": stage2.params})
    assert back.keys() == stage2.state_dict.keys()
    for name, array in stage2.state_dict.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_transformer_logits_and_cross_entropy(stage2):
    golden, codes = stage2.golden, jnp.asarray(stage2.golden["in/codes"])
    logits = stage2.logits(codes)
    close(logits, golden["out/logits"])
    close(stage2.logits(codes[:, :1]), golden["out/logits_first_row"])
    by_code = losses.cross_entropy(logits, codes)
    close(jnp.mean(by_code), golden["out/loss_ce"])
    close(jnp.mean(by_code, axis=(0, 1, 2)), golden["out/codebook_loss_ce"])


def test_transformer_teacher_forced_decode(stage2):
    codes = jnp.asarray(stage2.golden["in/codes"])
    kept, logits = stage2.sample(codes=codes, keep=True, return_logits=True)
    np.testing.assert_array_equal(kept, codes)
    close(logits, stage2.golden["out/cached_logits"])


def test_transformer_soft_targets(stage2):
    golden, quantized = stage2.golden, stage2.from_features()
    np.testing.assert_array_equal(quantized.codes, golden["out/codes_from_z"])
    close(quantized.soft, golden["out/soft_targets"])
    logits = stage2.logits(quantized.codes)
    close(logits, golden["out/logits_codes_from_z"])
    by_code = losses.soft_cross_entropy(logits, quantized.soft)
    close(jnp.mean(by_code), golden["out/loss_soft"])
    close(jnp.mean(by_code, axis=(0, 1, 2)), golden["out/codebook_loss_soft"])
    hard = losses.cross_entropy(logits, quantized.codes)
    close(jnp.mean(hard), golden["out/loss_ce_codes_from_z"])


def test_transformer_gradients(stage2):
    """Takes them of the soft loss; with text, of the weighted sum of both losses."""
    quantized, weights = stage2.from_features(), stage2.config.get("loss")
    text = stage2.model.condition_length > 1

    def loss_fn(params):
        logits = stage2.logits(quantized.codes, params, condition_logits=text)
        logits, text_logits = logits if text else (logits, None)
        loss = jnp.mean(losses.soft_cross_entropy(logits, quantized.soft))
        if not text:
            return loss, (None, None)
        by_token = losses.cross_entropy(text_logits, stage2.cond[:, 1:])
        text_loss = jnp.mean(by_token)
        loss = weights["img_weight"] * loss + weights["txt_weight"] * text_loss
        return loss, (text_logits, text_loss)

    grad_fn = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, (text_logits, text_loss)), gradients = grad_fn(stage2.params)
    if text:
        close(text_logits, stage2.golden["out/cond_logits"])
        close(text_loss, stage2.golden["out/cond_loss"])
        close(loss, stage2.golden["out/loss_combined"])
    gradients = convert.to_torch(stage2.model, {"params": gradients})
    check_gradients(stage2.golden, gradients)


def test_transformer_greedy_sampling(stage2):
    greedy = make_filters(SamplingConfig(top_k=1), stage2.model.depth)
    golden = stage2.golden
    np.testing.assert_array_equal(
        stage2.sample(filters=greedy), golden["out/greedy_codes"]
    )
    rows, columns = stage2.model.code_shape[:2]
    start = 1 * columns + 2
    keep = (np.arange(rows * columns) < start).reshape(1, rows, columns, 1)
    np.testing.assert_array_equal(
        stage2.sample(filters=greedy, codes=jnp.asarray(golden["in/codes"]), keep=keep),
        golden["out/greedy_from_1_2"],
    )


# Sampling, schedule, optimizer


@pytest.mark.parametrize("path", files("sampling_"))
def test_sampling_filters(path):
    golden = Golden(path)
    logits = jnp.asarray(golden["in/logits"])
    for i, combo in enumerate(golden.config["combos_k_p_temp"]):
        top_k, top_p, temperature = combo
        top_p = 1.0 if top_p is None else top_p
        filtered = filter_logits(logits, temperature, top_k=top_k or 0, top_p=top_p)
        probs = jax.nn.softmax(filtered, axis=-1)
        close(probs, golden[f"out/probs_{i}"], 1e-6)
        if combo[1] is None or top_p < 1:
            kept = jnp.sum(probs > 0, axis=-1)
            np.testing.assert_array_equal(kept, golden[f"out/kept_{i}"])


@pytest.mark.parametrize("path", files("schedule_"))
def test_learning_rate_schedule(path):
    golden = Golden(path)
    config = golden.config
    per_epoch = config["steps_per_epoch"]
    for name, case in config["cases"].items():
        world, mode = case["world"], case["mode"]
        factor = {"linear": world, "sqrt": math.sqrt(world)}.get(mode, 1)
        multiplier = case["multiplier"] * factor
        if mode != "none":
            multiplier = max(1.0, multiplier)
        schedule = optim.warmup_cosine(
            case["init_lr"],
            per_epoch * config["max_epoch"],
            per_epoch * case["epoch"],
            case["min_lr"],
            buffer_steps=per_epoch * case["buffer_epoch"],
            multiplier=multiplier,
            start_from_zero=case["start_from_zero"],
        )
        used = golden[f"out/{name}/lr_used"]
        rates = jax.vmap(schedule)(jnp.arange(len(used)))
        np.testing.assert_allclose(rates, used, 1e-6, 1e-12, err_msg=name)


@pytest.mark.parametrize("path", files("optimizer_"))
@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_optimizer(path, kind):
    golden = Golden(path)
    config = golden.config
    section = ConfigDict(
        dict(
            name=kind,
            b1=config["betas"][0],
            b2=config["betas"][1],
            eps=config["eps"],
            weight_decay=config["weight_decay"],
            decay_matrices_only=False,
            clip_norm=0.0,
            mu_dtype="float32",
        )
    )
    tx = optim.make_optimizer(section, optax.constant_schedule(config["lr"]))
    weights = jnp.asarray(golden["in/w"])
    state = tx.init(weights)
    for step, gradient in enumerate(golden["in/grads"]):
        updates, state = tx.update(jnp.asarray(gradient), state, weights)
        weights = optax.apply_updates(weights, updates)
        close(weights, golden[f"out/{kind}_after{step + 1}"], 1e-6)


# Losses of stage 1


def discriminator(golden, arch, prefix="state/"):
    return convert_discriminator.from_torch(arch, golden.below(prefix))


@pytest.mark.parametrize("path", files("gan_discriminator"))
def test_discriminator_logits_and_batch_statistics(path):
    golden = Golden(path)
    model, variables = discriminator(golden, golden.config["arch"])
    for name in ("fake", "real"):  # in this order each moves the statistics
        images = nhwc(golden[f"in/{name}"])
        logits = jax.jit(model.apply)(variables, images)
        close(logits, golden[f"out/eval_logits_{name}"][:, 0])
    train = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    train = jax.jit(train)
    for name in ("fake", "real"):
        images = nhwc(golden[f"in/{name}"])
        logits, moved = train(variables, images)
        close(logits, golden[f"out/train_logits_{name}"][:, 0])
        variables = {**variables, **moved}
    after = golden.below("state/") | golden.below("out/state_after_train_call/")
    _, expected = convert_discriminator.from_torch(golden.config["arch"], after)
    jax.tree.map(close, variables["batch_stats"], expected["batch_stats"])


@pytest.mark.parametrize("path", files("gan_discriminator"))
def test_adversarial_losses(path):
    golden = Golden(path)
    for mode in ("eval", "train"):
        real, fake = (golden[f"out/{mode}_logits_{name}"] for name in ("real", "fake"))
        values = {
            "hinge_d": losses.discriminator(real, fake, "hinge"),
            "vanilla_d": losses.discriminator(real, fake, "vanilla"),
            "vanilla_g": losses.generator(fake),
        }
        for name, value in values.items():
            close(value, golden[f"out/{mode}_{name}_mean"])
            close(value * real.size, golden[f"out/{mode}_{name}_sum"])


@pytest.mark.parametrize("path", files("gan_discriminator"))
def test_discriminator_gradients(path):
    golden = Golden(path)
    arch = golden.config["arch"]
    model, variables = discriminator(golden, arch)
    real, fake = (nhwc(golden[f"in/{name}"]) for name in ("real", "fake"))

    def logits(params, images):
        variables_ = {**variables, "params": params}
        return model.apply(variables_, images, train=True, mutable=["batch_stats"])[0]

    def hinge(params):
        return losses.discriminator(logits(params, real), logits(params, fake), "hinge")

    # The converter maps expected gradients as it maps parameters; what the file does
    # not store whole is compared by its norm.
    gradients = jax.jit(jax.grad(hinge))(variables["params"])
    norms = {n: float(x) for n, x in golden.below("out/grad_hinge_norm/").items()}
    expected = golden.below("out/grad_hinge/")
    stand_ins = {
        n: np.full(x.shape, UNKNOWN) for n, x in golden.below("state/").items()
    }
    tree = convert_discriminator.from_torch(arch, stand_ins | expected)[1]["params"]
    by_norm = convert_discriminator.from_torch(
        arch,
        {n: np.full(np.shape(x), norms.get(n, UNKNOWN)) for n, x in stand_ins.items()},
    )[1]["params"]

    def check(gradient, value, norm):
        close(np.linalg.norm(gradient), norm.ravel()[0], 1e-6, 1e-3)
        if not (value == UNKNOWN).any():
            bound = 1e-3 * np.abs(value).max()
            np.testing.assert_allclose(gradient, value, 0, bound)

    jax.tree.map(check, gradients, tree, by_norm)
    generator = jax.grad(lambda x: losses.generator(logits(variables["params"], x)))
    at_fake = jax.jit(generator)(fake)
    expected = golden["out/grad_g_wrt_fake"]
    bound = 1e-3 * np.abs(expected).max()
    np.testing.assert_allclose(nchw(at_fake), expected, 0, bound)


@pytest.mark.parametrize("path", files("gan_adaptive_weight"))
def test_adaptive_weight(path):
    golden = Golden(path)
    model, variables = discriminator(golden, golden.config["arch"])
    hidden, images = nhwc(golden["in/h"]), nhwc(golden["in/x"])
    kernel = jnp.asarray(golden["state_last/weight"].transpose(2, 3, 1, 0))

    def reconstruct(kernel):
        outputs = jax.lax.conv_general_dilated(
            hidden, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return outputs + golden["state_last/bias"]

    outputs, pull_back = jax.vjp(reconstruct, kernel)
    close(nchw(outputs), golden["out/recon"])

    def judge(outputs):
        logits, _ = model.apply(variables, outputs, train=True, mutable=["batch_stats"])
        return losses.generator(logits)

    def fidelity(outputs):
        return losses.reconstruction(images, outputs, "mse")

    gradients = []
    for loss, value, name in (
        (fidelity, "nll", "grad_nll"),
        (judge, "g_loss", "grad_g"),
    ):
        loss, at_outputs = jax.value_and_grad(loss)(outputs)
        close(loss, golden[f"out/{value}"])
        (gradient,) = pull_back(at_outputs)
        expected = golden[f"out/{name}"].transpose(2, 3, 1, 0)
        bound = 1e-3 * np.abs(expected).max()
        np.testing.assert_allclose(gradient, expected, 0, bound)
        gradients.append(gradient)
    fidelity, adversarial = gradients
    weight = float(losses.adaptive_weight(fidelity, adversarial))
    close(weight, golden["out/weight"])
    # A generator's loss that moves nothing: the bound.
    clamped = losses.adaptive_weight(fidelity, jnp.zeros_like(adversarial))
    close(clamped, golden["out/weight_clamped"])
    assert losses.adaptive_weight(fidelity, adversarial, weight / 2) <= weight / 2


class StageWithGradients(RQVAEStage):
    """Its metrics have the generator's gradients, so that one program finds all."""

    def update(self, state, grads):
        state, metrics = super().update(state, grads)
        return state, metrics | {"gradients": grads["generator"]}


def stage_of(golden):
    """The stage of a golden file of the whole train step, and its first state."""
    settings = golden.config
    model, variables = convert.from_torch(settings["arch"], golden.below("state/"))
    adversary, opposing = discriminator(golden, settings["disc"]["arch"], "disc_state/")
    config = default()
    config.data.resolution = model.resolution
    config.data.channels = model.image_channels
    for name, value in config.rqvae.model.items():
        config.rqvae.model[name] = type(value)(getattr(model, name))
    quantizer_settings = settings["arch"]["hparams"]
    loss, gan = config.rqvae.loss, config.rqvae.adversarial
    loss.reconstruction = quantizer_settings["loss_type"]
    loss.commitment_weight = quantizer_settings["latent_loss_weight"]
    loss.perceptual_weight = float(settings["loss"]["perceptual_weight"])
    gan.weight = settings["loss"]["disc_weight"]
    gan.loss = settings["loss"]["disc_loss"]
    gan.ndf, gan.layers = adversary.ndf, adversary.layers
    rate = settings["disc"]["optimizer"]["init_lr"]
    for optimizer in (gan.optimizer, config.rqvae.optimizer):
        optimizer.learning_rate = optimizer.min_learning_rate = rate
        optimizer.b1, optimizer.b2 = settings["disc"]["optimizer"]["betas"]
    distance = convert_lpips.from_torch(golden.below("lpips_state/"))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    stage = StageWithGradients(config, mesh, None, distance)
    assert stage.model == model
    state = sharding.unbox(stage.init(jax.random.key(0)))
    state = state.replace(
        **variables,
        adversary=state.adversary | opposing,
        key=jax.random.key(0),
    )
    return stage, state, rate


METRICS = {  # the authors' names to ours
    "g_weight": "adaptive_weight",
    "logits_fake": "logits/fake",
    "logits_real": "logits/real",
    "loss_disc": "loss/discriminator",
    "loss_gen": "loss/generator",
    "loss_latent": "loss/commitment",
    "loss_pcpt": "loss/perceptual",
    "loss_recon": "loss/reconstruction",
}


@pytest.mark.parametrize("path", files("gan_trainstep"))
def test_whole_train_steps(path):
    """Generator, codebook, discriminator, statistics and both optimizers."""
    golden = Golden(path)
    stage, state, rate = stage_of(golden)
    model, names = stage.model, golden.config["grad_norm_names"]

    step = jax.jit(stage.train_step)
    metric = golden.below("out/metric/")
    for i, images in enumerate(golden["in/x"]):
        batch = {"image": nhwc(images)}
        codes = apply(model, state.model_variables(), batch["image"], method="codes")
        if i == 0:  # later depths are searched before the codebook moves here
            np.testing.assert_array_equal(codes[..., 0], golden["out/codes"][i][..., 0])
        after, values = step(state, batch)
        grads = convert.to_torch(
            model, {"params": values["gradients"], "codebook": state.codebook}
        )
        norms = np.array([np.linalg.norm(grads[name]) for name in names])
        expected = golden["out/grad_norms"][i]
        real = expected > 1e-5 * expected.max()
        np.testing.assert_allclose(norms[real], expected[real], 1e-3)
        if i == 0:
            for name, gradient in golden.below("out/step1_grad/").items():
                bound = 1e-3 * max(np.abs(gradient).max(), 1e-5 * expected.max())
                np.testing.assert_allclose(grads[name], gradient, 0, bound)
        state = after
        for theirs, ours in METRICS.items():
            close(values[ours], metric[theirs][i], 1e-6, 1e-3)
        # Their total leaves the adversarial part out.
        weight = stage.config.rqvae.adversarial.weight * values["adaptive_weight"]
        total = values["loss"] - weight * values["loss/generator"]
        close(total, metric["loss_total"][i], 0, 1e-3)

    after = {"params": state.params, "codebook": state.codebook}
    after = convert.to_torch(model, after)
    moved = [
        np.abs(after[name] - value).max() / rate
        for name, value in golden.below("out/param_after2/").items()
    ]
    # Adam divides noise by itself where a gradient is noise: all but a few are exact.
    assert max(moved) < 4 and np.mean(np.array(moved) < 0.05) > 0.9
    codebook = state.codebook["state"]
    expected = golden.below("out/quantizer_after2/")
    close(codebook.embedding, expected["weight"][:-1], 1e-4)
    close(codebook.sums, expected["embed_ema"], 1e-4)
    close(codebook.counts, expected["cluster_size_ema"], 1e-4)
    arch = golden.config["disc"]["arch"]
    _, opposing = discriminator(golden, arch, "out/disc_after2/")
    close_tree = functools.partial(jax.tree.map, close)
    close_tree(state.adversary["batch_stats"], opposing["batch_stats"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 0, 0.05 * rate),
        state.adversary["params"],
        opposing["params"],
    )


def lpips_state(golden):
    """Stored weights, or those that a recipe makes."""
    stored = golden.below("state/")
    if "recipe" not in golden.config:
        return stored
    widths, rng = golden.config["widths"], np.random.default_rng(golden.config["seed"])
    state, channels, index = {}, 3, 0
    for width, convs in zip(widths, VGG16_CONVS, strict=True):
        for _ in range(convs):
            shape = (width, channels, 3, 3)
            scale = np.float32(np.sqrt(2 / (channels * 9)))
            weight = rng.standard_normal(shape, dtype=np.float32) * scale
            bias = rng.standard_normal((width,), dtype=np.float32) * np.float32(0.1)
            state[f"features.{index}.weight"] = weight
            state[f"features.{index}.bias"] = bias
            channels, index = width, index + 2
        index += 1
    for k, width in enumerate(widths):
        head = rng.standard_normal((1, width, 1, 1), dtype=np.float32)
        state[f"lin{k}.model.1.weight"] = np.abs(head)
    names = golden.config["checksum_names"]
    means = np.array([np.abs(state[name]).mean() for name in names])
    close(means, stored["checksum_abs_mean"], 1e-5)
    first = np.stack([state[name].ravel()[:4] for name in names])
    np.testing.assert_array_equal(first, stored["first_values"])
    return state


@pytest.mark.parametrize("path", files("lpips_"))
def test_perceptual_distance(path):
    golden = Golden(path)
    model, params = convert_lpips.from_torch(lpips_state(golden))
    variables = {"params": params}
    a, b = (nhwc(golden[f"in/{name}"]) for name in ("x0", "x1"))

    @jax.jit
    def measure(variables, a, b):  # one program, which runs the network once
        def mean(b):
            distance = model.apply(variables, a, b)
            return jnp.mean(distance), distance

        gradient, distance = jax.grad(mean, has_aux=True)(b)
        features = model.apply(variables, a, method="features")
        parts = model.apply(variables, a, b, method="layers")
        return features, parts, distance, gradient

    features, parts, distance, gradient = measure(variables, a, b)
    first = unit(features)[0][:, :8, :8]
    expected = golden["out/feat0_normalized_x0"]
    close(nchw(first)[: len(expected)], expected, 1e-5, 1e-4)
    close(nchw(features[4]), golden["out/feat4_x0"], 1e-5, 1e-4)
    for k, part in enumerate(parts):
        close(jnp.mean(features[k]), golden[f"out/feat{k}_mean_abs"], 1e-6, 1e-4)
        close(part, golden[f"out/layer{k}"].ravel(), 1e-6, 1e-4)
    close(distance, golden["out/lpips_none"].ravel(), 1e-6, 1e-4)
    close(jnp.mean(distance), golden["out/lpips_mean"], 1e-6, 1e-4)
    close(jnp.sum(distance), golden["out/lpips_sum"], 1e-6, 1e-4)
    expected = golden["out/grad_wrt_x1"]
    bound = 1e-3 * np.abs(expected).max()
    np.testing.assert_allclose(nchw(gradient), expected, 0, bound)


# Metrics


@pytest.mark.parametrize("path", files("metrics_fid"))
def test_frechet_distance(path):
    golden = Golden(path)

    def frechet(x, y):
        x, y = moments.of(x), moments.of(y)
        return distances.frechet_distance(x.mean, x.covariance, y.mean, y.covariance)

    x, y = golden["in/x"], golden["in/y"]
    for name, rows in (("x", x), ("y", y)):
        found = moments.of(rows)
        close(found.mean, golden[f"out/mu_{name}"])
        close(found.covariance, golden[f"out/sigma_{name}"])
    close(frechet(x, y).value, golden["out/fid"], 1e-6, 1e-4)
    assert frechet(x, x).value == pytest.approx(0, abs=1e-3)
    few = golden.config["singular_n"]
    singular = frechet(x[:few], y[:few])
    close(singular.value, golden["out/fid_singular"], 0, 1e-2)
    assert singular.condition == np.inf and 1 < frechet(x, y).condition < np.inf


@pytest.mark.parametrize("path", files("metrics_is"))
def test_inception_score(path):
    golden = Golden(path)
    for splits in golden.config["splits"]:
        found = distances.inception_score(golden["in/logits"], splits)
        close(found.mean, golden[f"out/is_mean_{splits}"])
        close(found.std, golden[f"out/is_std_{splits}"])


# Released checkpoints


def test_released_checkpoints_load():
    """A pair of files as torch.save wrote them, the moving average included."""
    if not (FOLDER / CHECKPOINTS).exists():
        assert "RQ_GOLDEN_DIR" in os.environ, "the project's own folder has the files"
        return
    golden = Golden(FOLDER / CHECKPOINTS)
    rqvae, variables = convert.load(FOLDER / "ckpt/rqvae/model.pt")
    images = nhwc(golden["in/x"])
    outputs, codes, _ = apply(rqvae, variables, images)
    np.testing.assert_array_equal(codes, golden["out/codes"])
    close(nchw(outputs), golden["out/recon"])
    codebook = variables["codebook"]["state"].embedding
    cond = jnp.asarray(golden["in/cond"])
    for name, ema in (("logits", False), ("logits_ema", True)):
        if f"out/{name}" not in golden:
            continue
        path = FOLDER / "ckpt/rqtransformer/model.pt"
        model, variables = convert.load(path, ema=ema)
        logits = apply(model, variables, codes, cond, codebook)
        close(logits, golden[f"out/{name}"])
