# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests the train steps of both stages, on one or eight devices, with microbatches."""

import functools
import importlib.util
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from program import OPTIMIZED

from rq.config import ConfigError, SamplingConfig, from_json, to_json
from rq.data.pixels import to_float
from rq.models.build import condition_sizes
from rq.models.networks import discriminator
from rq.parallel import sharding
from rq.sampling import conditions
from rq.sampling.sampler import Sampler
from rq.training import loop
from rq.training import optimizer as optim
from rq.training.stages import RQVAEStage, TransformerStage

ROOT = pathlib.Path(__file__).parent.parent
BATCH = 8
STEPS = 3


def tiny():
    """Returns the config `digits.py:tiny`."""
    path = ROOT / "configs/digits.py"
    spec = importlib.util.spec_from_file_location("digits_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config("tiny")


def one_device():
    return sharding.make_mesh(devices=jax.devices()[:1])


@functools.cache
def rqvae_variables(config):
    """Returns those of an untrained RQ-VAE, for the text of a config."""
    stage = RQVAEStage(from_json(config), one_device(), lambda: iter([]))
    key = jax.random.split(jax.random.key(0), 3)[0]
    return sharding.unbox(jax.jit(stage.init)(key)).model_variables()


def make_stage(name, config, mesh):
    """Returns a stage and a batch for it."""
    keys = jax.random.split(jax.random.key(0), 3)
    label = np.arange(BATCH, dtype=np.int32) % 10
    if name == "rqvae":
        image = jax.random.uniform(keys[0], (BATCH, 16, 16, 1), minval=-1)
        batch = {"image": np.asarray(image), "label": label}
        return RQVAEStage(config, mesh, lambda: iter([])), batch
    alone = tiny()
    alone.update(data=config.data.to_dict(), rqvae=config.rqvae.to_dict())
    variables = rqvae_variables(to_json(alone))
    stage = TransformerStage(config, mesh, lambda: iter([]), variables)
    shape = (BATCH, *stage.model.code_shape)
    codes = jax.random.randint(keys[1], shape, 0, 16)
    features = jax.random.normal(keys[2], (*shape[:-1], stage.model.input_dim))
    batch = {"codes": codes, "features": features, "label": label}
    if config.data.source != "none":
        batch["source_codes"] = codes[::-1]
    return stage, jax.tree.map(np.asarray, batch)


def run(name, mesh, config=None, steps=STEPS, history=None):
    """Returns state and metrics after a few steps, on the host.

    Metrics of all steps are added to the list `history`, if given.
    """
    config = tiny() if config is None else config
    stage, batch = make_stage(name, config, mesh)
    boxed = jax.eval_shape(stage.init, jax.random.key(1))
    shardings = sharding.state_shardings(boxed, mesh)
    init = jax.jit(lambda key: sharding.unbox(stage.init(key)), out_shardings=shardings)
    state = init(jax.random.key(1))
    step = loop.compiled(stage.train_step, shardings, mesh)
    with sharding.context(mesh):
        batch = sharding.shard_batch(batch, mesh)
        if steps > STEPS:
            step = step.lower(state, batch).compile(OPTIMIZED)
        for _ in range(steps):
            state, metrics = step(state, batch)
            if history is not None:
                history.append(jax.device_get(metrics))
    state = state.replace(key=jax.random.key_data(state.key))
    return jax.device_get(state), jax.device_get(metrics)


def check_transformer_on_eight_devices(config):
    """Checks that a few steps are those on one device."""
    config.transformer.optimizer.eps = 1.0  # linear in the gradient, as below
    config.transformer.optimizer.learning_rate = 0.01
    expected = run("transformer", one_device(), config)
    found = run("transformer", sharding.make_mesh(2, 2, 2), config)
    parts = ((state.params, metrics) for state, metrics in (found, expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-5), *parts)


def smooth_leaky_relu(x, slope):
    return slope * x + (1 - slope) * jax.nn.softplus(4 * x) / 4


@pytest.mark.parametrize(
    "name", [pytest.param("rqvae", marks=pytest.mark.slow), "transformer"]
)
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((8, 1, 1), marks=pytest.mark.slow),
        pytest.param((1, 8, 1), marks=pytest.mark.slow),
        pytest.param((1, 1, 8), marks=pytest.mark.slow),
        (2, 2, 2),
    ],
)
def test_eight_devices_compute_what_one_does(name, sizes, monkeypatch):
    """Compares losses, parameters, codebook, discriminator and all statistics on
    several meshes, after 20 steps, to 1e-5.
    """
    # At an activation of zero rounding decides which slope of the leaky ReLU applies,
    # which changes the gradient by 5e-4. The smooth function has no such points.
    monkeypatch.setattr(discriminator.nn, "leaky_relu", smooth_leaky_relu)
    config = tiny()
    # With a small epsilon Adam divides rounding noise by itself if a gradient is zero;
    # with a large one the update is linear in the gradient.
    config[name].optimizer.eps = 1.0
    config[name].optimizer.learning_rate = 0.01
    if name == "rqvae":
        config.rqvae.adversarial.start = 10
        config.rqvae.adversarial.weight = 0.75
        config.rqvae.adversarial.optimizer.eps = 1.0
    expected = run(name, one_device(), config, steps=20)
    found = run(name, sharding.make_mesh(*sizes), config, steps=20)

    def leaves(result):
        state, metrics = result
        adversary = {k: v for k, v in state.adversary.items() if k != "opt_state"}
        parts = (state.params, state.codebook, adversary, metrics)
        return jax.tree_util.tree_leaves_with_path(parts)

    for (path, a), (_, b) in zip(leaves(found), leaves(expected), strict=True):
        place = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=place)


@pytest.mark.parametrize("microbatches", [2, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(microbatches):
    """Without randomness and codebook updates, which differ between microbatches."""

    def grad_fn(state, batch, key):
        params, codebook = state

        def loss_fn(params):
            return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(params)
        return grads, (params, codebook + 1), {"loss": loss}

    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)}
    batch = {"x": rng.normal(size=(8, 3)), "y": rng.normal(size=(8, 2))}
    batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), batch)
    key = jax.random.key(0)
    whole = optim.accumulate_gradients(grad_fn, (params, 0), batch, key, 1)
    parts = optim.accumulate_gradients(grad_fn, (params, 0), batch, key, microbatches)
    np.testing.assert_allclose(parts[0]["w"], whole[0]["w"], rtol=1e-5)
    assert parts[1][1] == microbatches and whole[1][1] == 1
    np.testing.assert_allclose(parts[2]["loss"], whole[2]["loss"], rtol=1e-5)


@pytest.mark.parametrize(
    "name", [pytest.param("rqvae", marks=pytest.mark.slow), "transformer"]
)
def test_a_stage_trains_with_accumulation(name):
    config = tiny()
    config[name].grad_accum_steps = 2
    state, metrics = run(name, one_device(), config, steps=1)
    assert state.step == 1 and np.isfinite(metrics["loss"])


@pytest.mark.parametrize(
    "name", [pytest.param("rqvae", marks=pytest.mark.slow), "transformer"]
)
def test_the_loss_falls_on_one_batch(name):
    config = tiny()
    config[name].optimizer.learning_rate = 3e-3
    config[name].steps = 40
    history = []
    run(name, one_device(), config, steps=40, history=history)
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", sorted(optim.OPTIMIZERS))
def test_every_optimizer_learns_a_batch_on_several_devices(optimizer):
    config = tiny()
    rates = {"sgd": 0.3, "lion": 1e-3}
    config.transformer.optimizer.name = optimizer
    config.transformer.optimizer.learning_rate = rates.get(optimizer, 1e-2)
    history = []
    run("transformer", sharding.make_mesh(2, 2, 2), config, steps=12, history=history)
    assert history[-1]["loss"] < history[0]["loss"] - 0.1


def test_muon_is_the_librarys_on_each_matrix_and_adam_elsewhere():
    """Each layer of a scan is a matrix; norms, biases and embeddings use Adam."""
    options = tiny().transformer.optimizer
    options.name, options.weight_decay, options.clip_norm = "muon", 0.0, 0.0
    rng = np.random.default_rng(0)

    def tree(matrices, rest):
        return {"body_stack": {"proj": {"kernel": matrices, "bias": rest}}, "e": rest}

    grads = tree(rng.normal(size=(2, 6, 4)), rng.normal(size=4))
    params = jax.tree.map(jnp.ones_like, grads)
    tx = optim.make_optimizer(options, lambda step: 0.1)
    found, _ = tx.update(grads, tx.init(params), params)
    for layer in range(2):
        one = {"kernel": grads["body_stack"]["proj"]["kernel"][layer]}
        library = optax.contrib.muon(0.1, beta=0.95, consistent_rms=0.2)
        expected, _ = library.update(one, library.init(one), one)
        kernel = found["body_stack"]["proj"]["kernel"][layer]
        np.testing.assert_allclose(kernel, expected["kernel"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["e"], -0.1 * np.sign(grads["e"]), rtol=1e-4)


@pytest.mark.parametrize("max_norm", [0.5, 20.0])
def test_gradients_are_clipped_as_the_library_clips_them(max_norm):
    """Arrays of any number of axes; those of norm 8 are scaled down, or are not."""
    rng = np.random.default_rng(0)
    shapes = ((), (3,), (4, 2), (3, 2, 4), (2, 3, 2, 4))
    grads = {
        str(len(shape)): jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in shapes
    }
    library = optax.clip_by_global_norm(max_norm)
    expected, _ = library.update(grads, library.init(grads))
    options = tiny().transformer.optimizer
    options.name, options.weight_decay, options.b1 = "sgd", 0.0, 0.0
    options.clip_norm = max_norm
    tx = optim.make_optimizer(options, lambda step: 1.0)
    found, _ = tx.update(grads, tx.init(grads), grads)
    np.testing.assert_allclose(
        optim.global_norm(grads), optax.tree.norm(grads), rtol=1e-6
    )
    for name in grads:
        np.testing.assert_allclose(found[name], -expected[name], rtol=1e-6)


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_the_mean_of_gradients_may_have_half_the_size(name):
    """Only the mean is bfloat16, and the steps are nearly the same."""
    options = tiny().transformer.optimizer
    options.name, options.weight_decay, options.b1 = name, 0.0, 0.9
    kernel = jax.random.normal(jax.random.key(0), (8, 8))
    params = {"body_stack": {"proj": {"kernel": kernel}}, "e": jnp.ones(8)}
    found = {}
    for dtype in ("float32", "bfloat16"):
        options.mu_dtype = dtype
        tx = optim.make_optimizer(options, lambda step: 0.1)
        state, moved = tx.init(params), params
        for step in range(3):
            grads = jax.tree.map(lambda x, step=step: jnp.sin(x + step), params)
            updates, state = tx.update(grads, state, moved)
            moved = optax.apply_updates(moved, updates)
        floats = [
            x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)
        ]
        found[dtype] = moved, {str(x.dtype) for x in floats}
    assert found["float32"][1] == {"float32"}
    assert "bfloat16" in found["bfloat16"][1]
    wide, narrow = (np.asarray(found[d][0]["e"]) for d in found)
    np.testing.assert_allclose(narrow, wide, atol=0.02)
    assert narrow.dtype == np.float32
    assert (narrow != wide).any() or name == "lion"  # whose updates are signs


def test_muon_refuses_what_has_no_transformer():
    options = tiny().transformer.optimizer
    options.name = "muon"
    with pytest.raises(ValueError, match="muon"):
        optim.make_optimizer(options, lambda step: 0.1).init(
            {"kernel": jnp.ones((2, 2))}
        )


@pytest.mark.slow
def test_the_moving_average_follows_the_parameters():
    config = tiny()
    config.transformer.optimizer.ema = 0.5
    state, _ = run("transformer", one_device(), config)
    kernel = state.params["classifier_kernel"], state.ema["classifier_kernel"]
    assert (kernel[0] != kernel[1]).any()
    np.testing.assert_allclose(*kernel, atol=0.01)
    variables = state.model_variables()
    assert variables["params"] is state.ema


def test_stage_two_never_moves_the_codebook():
    config = tiny()
    stage, batch = make_stage("transformer", config, one_device())
    state = sharding.unbox(jax.jit(stage.init)(jax.random.key(0)))
    after, _ = jax.jit(stage.train_step)(state, batch)
    before = jax.tree.leaves(state.codebook)
    for a, b in zip(before, jax.tree.leaves(after.codebook), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("stochastic", [True, False])
def test_codes_are_sampled_with_stochastic_codes(stochastic):
    config = tiny()
    config.transformer.loss.stochastic_codes = bool(stochastic)
    stage, batch = make_stage("transformer", config, one_device())
    codebook = stage.rqvae_variables["codebook"]
    z = jnp.asarray(batch["features"])
    nearest = stage.rqvae.clone().apply  # the search that stored the codes
    unpacked = nearest(stage.rqvae_variables, z, method="unpack")
    batch["codes"] = nearest(stage.rqvae_variables, unpacked, method="quantize")[1]
    codes = stage.codes(codebook, batch, jax.random.key(0))
    if stochastic:
        assert (codes != batch["codes"]).any()
        config.transformer.loss.temperature = 1e-9
        sharp = stage.codes(codebook, batch, jax.random.key(0))
        np.testing.assert_array_equal(sharp, batch["codes"])
    else:
        np.testing.assert_array_equal(codes, batch["codes"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "soft, stochastic, text", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
)
def test_the_loss_of_microbatches_is_the_loss_of_all_positions(soft, stochastic, text):
    """Each of four microbatches has a quarter of the positions."""
    config = tiny()
    config.transformer.condition = "text" if text else "class"
    config.transformer.loss.soft_targets = bool(soft)
    config.transformer.loss.stochastic_codes = bool(stochastic)
    config.transformer.loss.z_weight = 1e-3
    config.rqvae.model.num_codes = (24,)  # no other size is 24
    found = []
    for microbatches in (1, 4):
        config.transformer.loss.microbatches = microbatches
        stage, batch = make_stage("transformer", config, one_device())
        shape = (BATCH, config.transformer.text.length)
        batch["text"] = np.arange(np.prod(shape), dtype=np.int32).reshape(shape) % 11
        state = sharding.unbox(jax.jit(stage.init)(jax.random.key(0)))
        gradients = jax.jit(stage.gradients)
        grads, _, metrics = gradients(state, batch, jax.random.key(3))
        variables = state.model_variables()
        batch["mask"] = np.ones(BATCH, np.float32)
        found.append((grads, metrics, stage._eval_step(variables, {}, batch)))
        jaxpr = str(jax.make_jaxpr(stage.gradients)(state, batch, jax.random.key(3)))
        whole = (BATCH, stage.model.positions, stage.model.depth, 24)
        assert (f"f32[{','.join(map(str, whole))}]" in jaxpr) == (microbatches == 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-6), *found)


@pytest.mark.parametrize(
    "temperature", [2.0, pytest.param(0.5, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("stochastic", [True, False])
def test_soft_loss_is_that_of_enumerating_every_code(stochastic, temperature):
    """It is the mean of -log p(k) over codes k ~ exp(-|r - e_k|^2 / tau)."""
    config = tiny()
    config.transformer.loss.temperature = temperature
    config.transformer.loss.stochastic_codes = stochastic
    for stack in (config.transformer.model.body, config.transformer.model.head):
        stack.residual_dropout = 0.0
    stage, batch = make_stage("transformer", config, one_device())
    codebook = stage.rqvae_variables["codebook"]
    key = jax.random.key(7)
    codes = stage.codes(codebook, batch, jax.random.split(key)[0])
    params = sharding.unbox(jax.jit(stage.init)(jax.random.key(0))).params
    vectors = np.asarray(codebook["state"].embedding, np.float64)
    logits = stage.model.apply(
        {"params": params}, codes, batch["label"], codebook["state"].embedding
    )
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    total = np.zeros(codes.shape[-1])
    for place in np.ndindex(*codes.shape[:-1]):
        residual = np.asarray(batch["features"], np.float64)[place]
        for depth, chosen in enumerate(np.asarray(codes)[place]):
            masses = [
                math.exp(-np.sum((residual - vector) ** 2) / temperature)
                for vector in vectors
            ]
            for k, mass in enumerate(masses):
                share = mass / sum(masses)
                total[depth] -= share * log_p[(*place, depth, k)]
            residual = residual - vectors[chosen]
    by_depth = total / math.prod(codes.shape[:-1])
    loss, metrics = stage.loss(params, codebook, batch, key)
    np.testing.assert_allclose(loss, by_depth.mean(), rtol=1e-5)
    for depth, expected in enumerate(by_depth, 1):
        np.testing.assert_allclose(metrics[f"loss/depth_{depth}"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    "fraction", [0.5, *(pytest.param(x, marks=pytest.mark.slow) for x in (0.0, 0.999))]
)
def test_conditions_are_left_out_for_guidance(fraction):
    config = tiny()
    config.transformer.condition_dropout = fraction
    stage, batch = make_stage("transformer", config, one_device())
    state = sharding.unbox(jax.jit(stage.init)(jax.random.key(0)))
    grads, _, _ = jax.jit(stage.gradients)(state, batch, jax.random.key(0))
    moved = np.asarray(jnp.any(grads["condition_embedding"] != 0, axis=1))
    assert len(moved) == 10 + (fraction > 0)
    assert moved[:10].any() == (fraction < 0.9)
    assert moved[10:].all() and moved[:10].sum() <= BATCH * (1 - fraction / 2)


def make_sampler(stage, state=None):
    if state is None:
        state = sharding.unbox(jax.jit(stage.init)(jax.random.key(0)))
    return Sampler(
        stage.model,
        state.model_variables(),
        stage.rqvae,
        stage.rqvae_variables,
        mesh=stage.mesh,
        null_cond=stage.null_cond,
    )


@pytest.mark.slow
def test_guidance_needs_a_model_that_was_trained_for_it():
    config = tiny()
    stage, _ = make_stage("transformer", config, one_device())
    assert make_sampler(stage).options(SamplingConfig())[1] is None
    with pytest.raises(ConfigError, match="condition_dropout"):
        make_sampler(stage).options(SamplingConfig(guidance=2.0))
    config.transformer.condition_dropout = 0.1
    stage, _ = make_stage("transformer", config, one_device())
    options = SamplingConfig(guidance=(2.0, 3.0), guidance_schedule="linear", seed=1)
    images, codes = make_sampler(stage).sample(np.arange(2), 2, options)
    assert images.shape == (2, 16, 16, 1) and codes.shape == (2, 4, 4, 2)
    assert np.isfinite(images).all()


@pytest.mark.slow
def test_text_weighs_its_next_token_loss():
    config = tiny()
    config.transformer.condition = "text"
    config.transformer.text.vocab_size = 11
    config.transformer.text.length = 5
    stage, batch = make_stage("transformer", config, one_device())
    with pytest.raises(ValueError, match="'text'"):
        conditions.make(config, batch)
    text = np.random.default_rng(0).integers(0, 11, (BATCH, 5)).astype(np.int32)
    batch["text"] = text
    state = sharding.unbox(jax.jit(stage.init)(jax.random.key(0)))
    _, metrics = jax.jit(stage.train_step)(state, batch)
    expected = 0.9 * metrics["loss/image"] + 0.1 * metrics["loss/text"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)

    # A model that is sure of the next token, whatever it reads, loses nothing where it
    # is right: token t + 1 is predicted at t.
    def text_loss(logits):
        model = stage.model.__class__
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "text_logits", lambda self, outputs: logits)
            key = jax.random.key(0)
            metrics = stage.loss(state.params, state.codebook, batch, key)[1]
            return metrics["loss/text"]

    assert text_loss(100.0 * jax.nn.one_hot(text[:, 1:], 11)) < 1e-6
    assert text_loss(100.0 * jax.nn.one_hot(text[:, :-1], 11)) > 10


@pytest.mark.parametrize("name", ["residual", "attention", "condition"])
def test_dropout_is_on_in_training_alone_and_other_in_each_step(name):
    config = tiny()
    config.transformer.loss.update(stochastic_codes=False, soft_targets=False)
    config.transformer.condition_dropout = 0.5 * (name == "condition")
    for stack in (config.transformer.model.body, config.transformer.model.head):
        stack.residual_dropout = 0.5 * (name == "residual")
        stack.attention_dropout = 0.5 * (name == "attention")
    stage, batch = make_stage("transformer", config, one_device())
    state = sharding.unbox(jax.jit(stage.init)(jax.random.key(0)))
    loss = jax.jit(lambda key: stage.loss(state.params, state.codebook, batch, key)[0])
    assert len({float(loss(jax.random.key(i))) for i in range(3)}) == 3
    batch["mask"] = np.ones(BATCH)
    sums = [stage._eval_step(state.model_variables(), {}, batch) for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, *sums)


def test_evaluation_does_not_count_padding():
    stage, batch = make_stage("transformer", tiny(), one_device())
    state = sharding.unbox(jax.jit(stage.init)(jax.random.key(0)))
    found = []
    for seed in (0, 1):  # of what the padding is
        codes = np.random.default_rng(seed).integers(0, 16, batch["codes"].shape)
        codes[:5] = batch["codes"][:5]
        padded = batch | {"codes": codes.astype(np.int32), "mask": np.arange(8.0) < 5}
        stage.eval_batches = lambda padded=padded: iter([padded])
        found.append(stage.evaluate(state))
    assert found[0] == found[1]
    only = {name: x[:5] for name, x in batch.items()} | {"mask": np.ones(5)}
    stage.eval_batches = lambda: iter([only])
    metrics = stage.evaluate(state)
    assert found[0] == pytest.approx(metrics, rel=1e-5)
    nats = sum(metrics[f"cross_entropy/depth_{d}"] for d in (1, 2))
    assert metrics["bits_per_image"] == pytest.approx(16 * nats / math.log(2))


@pytest.mark.parametrize("microbatches", [1, 4, 16])
def test_positions_in_microbatches_come_back_in_order(microbatches):
    config = tiny()
    config.transformer.loss.microbatches = microbatches
    stage, batch = make_stage("transformer", config, one_device())
    params = sharding.unbox(jax.jit(stage.init)(jax.random.key(0))).params
    codes = jnp.asarray(batch["codes"])
    outputs = jnp.zeros((BATCH, 16, 2, config.transformer.model.width))
    found = stage.by_position(params, lambda logits, codes: codes, outputs, codes)
    np.testing.assert_array_equal(found, codes.reshape(BATCH, 16, 2))


def text_config(condition):
    config = tiny()
    config.transformer.condition = condition
    config.transformer.condition_dropout = 0.3
    config.transformer.text.vocab_size = 11
    config.transformer.text.length = 5
    return config


def test_conditions_of_text_and_class():
    """The class comes first, numbered after the vocabulary; none has its own value."""
    batch = {"label": np.array([3, 0]), "text": np.array([[1, 2, 0, 0, 0]] * 2)}
    config = text_config("class_text")
    np.testing.assert_array_equal(
        conditions.make(config, batch), [[14, 1, 2, 0, 0, 0], [11, 1, 2, 0, 0, 0]]
    )
    np.testing.assert_array_equal(conditions.null(config), [21, 0, 0, 0, 0, 0])
    null = conditions.null(text_config("text"), np.full(5, 7))
    np.testing.assert_array_equal(null, [7] * 5)
    assert condition_sizes(config) == (22, 6)
    assert conditions.null(tiny()) is None
    cond = jnp.ones((2000, 3), jnp.int32)
    left = conditions.leave_out(cond, np.array([5, 6, 7]), 0.3, jax.random.key(0))
    gone = np.asarray(left[:, 0] == 5)
    np.testing.assert_array_equal(left[gone], np.tile([5, 6, 7], (gone.sum(), 1)))
    assert (left[~gone] == 1).all() and 0.25 < gone.mean() < 0.35


def test_of_both_conditions_some_images_lack_one_and_as_many_both():
    cond, none = jnp.ones((4000, 3), jnp.int32), np.array([5, 6, 7])
    key = jax.random.key(0)
    left = np.asarray(conditions.leave_out_parts(cond, none, 0.2, key, (1, 2)))
    rows = {(5, 6, 7): 0.2, (1, 6, 7): 0.2, (5, 1, 1): 0.2, (1, 1, 1): 0.4}
    found = {row: np.mean((left == row).all(axis=1)) for row in rows}
    assert found == pytest.approx(rows, abs=0.03)
    whole = np.asarray(conditions.leave_out(cond, none, 0.2, key))
    np.testing.assert_array_equal(
        (whole == none).all(axis=1), (left == none).all(axis=1)
    )


@pytest.mark.parametrize(
    "condition", [pytest.param("text", marks=pytest.mark.slow), "class_text"]
)
def test_text_trains_and_samples_with_guidance(condition):
    config = text_config(condition)
    stage, batch = make_stage("transformer", config, one_device())
    batch["text"] = np.ones((BATCH, 5), np.int32)
    state = sharding.unbox(jax.jit(stage.init)(jax.random.key(0)))
    state, metrics = jax.jit(stage.train_step)(state, batch)
    assert np.isfinite(metrics["loss/text"])
    cond = np.asarray(conditions.make(config, batch))[:2]
    sampler = make_sampler(stage, state)
    _, codes = sampler.sample(cond, 2, SamplingConfig(guidance=2.0, seed=1))
    assert codes.shape == (2, 4, 4, 2)


@pytest.mark.slow
def test_online_the_step_is_that_on_stored_codes():
    """Compares encoding images in the step with codes stored before."""
    config = tiny()
    stage, batch = make_stage("transformer", config, one_device())
    image = np.random.default_rng(0).integers(0, 255, (BATCH, 16, 16, 1), np.uint8)
    codes, features = stage.rqvae.apply(
        stage.rqvae_variables, to_float(image), method="codes_and_features"
    )
    state = sharding.unbox(jax.jit(stage.init)(jax.random.key(0)))
    stored = batch | {"codes": codes, "features": features}
    stored, metrics = jax.jit(stage.train_step)(state, stored)

    config.transformer.online = True
    stage, _ = make_stage("transformer", config, one_device())
    state = sharding.unbox(jax.jit(stage.init)(jax.random.key(0)))
    batch = {"image": image, "label": batch["label"]}
    online, online_metrics = jax.jit(stage.train_step)(state, batch)
    np.testing.assert_allclose(online_metrics["loss"], metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(
        online_metrics["gradient_norm"], metrics["gradient_norm"], rtol=1e-4
    )
    for a, b in zip(
        jax.tree.leaves(online.frozen["rqvae"]),
        jax.tree.leaves(stage.rqvae_variables),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_weight_decay_takes_kernels_alone():
    params = {
        "classifier_kernel": 0,
        "classifier_bias": 0,
        "body_positions": 0,
        "blocks": {"norm1": {"scale": 0, "bias": 0}, "query": {"kernel": 0, "bias": 0}},
    }
    mask = optim.is_matrix(params)
    assert mask["classifier_kernel"] and mask["blocks"]["query"]["kernel"]
    assert sum(jax.tree.leaves(mask)) == 2


def optimizer_step(params, grads, **changes):
    """The updates of one step of a config's optimizer at a rate of 1."""
    options = tiny().transformer.optimizer
    options.update(dict(clip_norm=0.0, weight_decay=0.0) | changes)
    tx = optim.make_optimizer(options, lambda step: 1.0)
    return tx.update(grads, tx.init(params), params)[0]


@pytest.mark.parametrize("matrices_only", [True, False])
def test_weight_decay_moves_what_it_should(matrices_only):
    params = {"a": {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 5.0)}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    moved = optimizer_step(
        params,
        zeros,
        name="adamw",
        weight_decay=0.1,
        decay_matrices_only=matrices_only,
    )["a"]
    np.testing.assert_allclose(moved["kernel"], -0.3, rtol=1e-6)
    np.testing.assert_allclose(moved["bias"], 0 if matrices_only else -0.5, rtol=1e-6)


@pytest.mark.parametrize("size, clip, expected", [(10, 2, 2), (1, 2, 1), (10, 0, 10)])
def test_gradients_are_clipped_by_their_common_length(size, clip, expected):
    grads = {"a": jnp.array([3.0, 0.0]) * size / 5, "b": jnp.array([4.0]) * size / 5}
    moved = optimizer_step(grads, grads, name="sgd", clip_norm=float(clip))
    length = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(moved)))
    np.testing.assert_allclose(length, expected, rtol=1e-5)
    np.testing.assert_allclose(moved["a"][0] / moved["b"][0], 0.75, rtol=1e-5)
