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

from rq import convert, losses, optim, sampling
from rq.convert.names import StateDict, one_or_each
from rq.convert.rqvae import codebook_from_torch
from rq.models import quantizer
from rq.models.quantizer import Codebook, Update

FOLDER = pathlib.Path(
    os.environ.get("RQ_GOLDEN_DIR", pathlib.Path(__file__).parent / "golden")
)
FAMILIES = ("rqvae_", "ema_", "rqtransformer_", "sampling_", "schedule_", "optimizer_")
CHECKPOINTS = "ckpt_expected.npz"
LATER = ("gan_", "lpips_", "metrics_")  # what the package has no answer to yet


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
    rest = sorted(set(names) - set(answered))
    print(f"answered: {len(answered)}; left to later: {', '.join(rest) or 'none'}")
    assert all(name.startswith(LATER) for name in rest), rest


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
        codebook = quantizer.update_codebook(
            codebook, jnp.asarray(vectors), codes, update, jax.random.key(step)
        )
        arrays = golden.below(f"out/after{step + 1}/")
        if "out/dead" not in golden:
            check_codebook(codebook, arrays, **ema_tolerance(golden))
            continue

        plain = quantizer.update_codebook(
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
        call = functools.partial(self.model.apply, **kwargs)
        arguments = (codes, self.cond, self.codebook.embedding)
        return jax.jit(call)({"params": params}, *arguments)

    def sample(self, **kwargs):
        return sampling.sample(
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
    """Of the soft loss; with text, of its weighted sum with the text's loss."""
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
    greedy = sampling.make_filters(stage2.model.depth, top_k=1)
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
    for i, (top_k, top_p, temperature) in enumerate(golden.config["combos_k_p_temp"]):
        filtered = sampling.filter_logits(
            logits, temperature, top_k or 0, 1.0 if top_p is None else top_p
        )
        probs = jax.nn.softmax(filtered, axis=-1)
        close(probs, golden[f"out/probs_{i}"], 1e-6)
        if top_p is None or top_p < 1:
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
        )
    )
    tx = optim.make_optimizer(section, optax.constant_schedule(config["lr"]))
    weights = jnp.asarray(golden["in/w"])
    state = tx.init(weights)
    for step, gradient in enumerate(golden["in/grads"]):
        updates, state = tx.update(jnp.asarray(gradient), state, weights)
        weights = optax.apply_updates(weights, updates)
        close(weights, golden[f"out/{kind}_after{step + 1}"], 1e-6)


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
