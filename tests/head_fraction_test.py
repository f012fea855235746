# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests the training of the depth head at a random fraction of positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stages_test import (
    BATCH,
    check_transformer_on_eight_devices,
    make_stage,
    one_device,
    tiny,
)

from rq import flops
from rq.config import ConfigError, trained_positions, validate
from rq.parallel import sharding

FRACTION = 0.25  # 4 of 16 positions


def make(fraction=FRACTION, dropout=0.0, text=False, **loss):
    """Returns a stage of the tiny config, a batch, and a new state."""
    config = tiny()
    config.transformer.condition = "text" if text else "class"
    config.transformer.loss.update(head_fraction=fraction, z_weight=1e-3, **loss)
    for stack in (config.transformer.model.body, config.transformer.model.head):
        stack.residual_dropout = dropout
    config.rqvae.model.num_codes = (24,)  # no other size is 24
    stage, batch = make_stage("transformer", config, one_device())
    shape = (BATCH, config.transformer.text.length)
    batch["text"] = np.arange(np.prod(shape), dtype=np.int32).reshape(shape) % 11
    return stage, batch, sharding.unbox(jax.jit(stage.init)(jax.random.key(0)))


def shapes(function, *args):
    return str(jax.make_jaxpr(function)(*args))


@pytest.mark.slow
@pytest.mark.parametrize(
    "fraction, number",
    [
        (1e-6, 1),
        (0.25, 4),
        (0.3, 5),
        (1, 16),
    ],
)
def test_the_number_of_positions_is_fixed_and_at_least_one(fraction, number):
    stage, batch, state = make(fraction)
    assert trained_positions(stage.config) == number
    jaxpr = shapes(stage.gradients, state, batch, jax.random.key(1))
    for count in (number, 16):  # logits of these positions alone
        assert (f"f32[{BATCH},{count},2,24]" in jaxpr) == (count == number)
    assert ("argsort" in jaxpr) == (number < 16)  # all positions: nothing is drawn


def test_positions_are_drawn_evenly_and_anew():
    stage, _, _ = make()
    draw = jax.jit(lambda key: stage.drawn_positions(500, key))
    found = np.asarray(draw(jax.random.key(0)))
    assert found.shape == (500, 4) and found.min() == 0 and found.max() == 15
    assert all(len(set(row)) == 4 for row in found.tolist())
    counts = np.bincount(found.ravel(), minlength=16)  # 125 each, deviation 10
    assert np.abs(counts - 125).max() < 45
    assert not np.array_equal(found, draw(jax.random.key(1)))
    assert make(1.0)[0].drawn_positions(500, jax.random.key(0)) is None


@pytest.mark.parametrize(
    "text, loss",
    [
        (False, {"microbatches": 2}),
        pytest.param(True, {"soft_targets": False}, marks=pytest.mark.slow),
        pytest.param(False, {"stochastic_codes": False}, marks=pytest.mark.slow),
    ],
)
def test_losses_and_gradients_of_disjoint_draws_average_to_those_of_all_positions(
    text, loss
):
    """So their expectations are equal: each draw is one of such a partition."""
    key = jax.random.key(3)
    stage, batch, state = make(text=text, **loss)
    order = jax.random.uniform(jax.random.key(5), (BATCH, 16)).argsort(axis=1)
    grads, metrics = [], []

    @jax.jit
    def gradients(at):
        stage.drawn_positions = lambda *_: at
        return stage.gradients(state, batch, key)

    for part in range(4):
        found = gradients(order[:, 4 * part : 4 * part + 4])
        grads.append(found[0])
        metrics.append(found[2])
    whole, batch, state = make(1.0, text=text, **loss)
    expected = jax.jit(whole.gradients)(state, batch, key)
    pairs = zip(grads, metrics, strict=True)
    mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *pairs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-6),
        mean,
        jax.device_get((expected[0], expected[2])),
    )
    assert np.std([float(x["loss"]) for x in metrics]) > 1e-3  # a draw differs


def test_outputs_at_positions_are_those_of_all_of_them():
    stage, batch, state = make()
    embedding = state.codebook["state"].embedding
    codes = jnp.asarray(batch["codes"])
    at = jax.random.uniform(jax.random.key(5), (BATCH, 16)).argsort(axis=1)[:, :5]

    @jax.jit
    def outputs(at):
        variables = {"params": state.params}
        args = variables, codes, None, embedding
        return stage.model.apply(*args, at=at, method="outputs")[0]

    expected = jnp.take_along_axis(outputs(None), at[..., None, None], axis=1)
    np.testing.assert_allclose(outputs(at), expected, 1e-5, 1e-5)


def test_evaluation_uses_all_positions():
    found = []
    for fraction in (FRACTION, 1.0):
        stage, batch, state = make(fraction)
        batch["mask"] = np.ones(BATCH, np.float32)
        found.append(stage._eval_step(state.model_variables(), {}, batch))
    jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.slow
def test_the_head_costs_a_quarter_of_the_flops():
    def count(fraction):
        stage, batch, state = make(fraction)
        traced = jax.jit(stage.gradients).trace(state, batch, jax.random.key(0))
        return flops.program_flops(traced.jaxpr)

    quarter, half, whole = (count(x) for x in (0.25, 0.5, 1.0))
    np.testing.assert_allclose(whole - half, 2 * (half - quarter), rtol=1e-6)
    assert quarter < 0.6 * whole


@pytest.mark.slow
def test_eight_devices_compute_what_one_does():
    config = tiny()
    config.transformer.loss.head_fraction = FRACTION
    check_transformer_on_eight_devices(config)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.01])
def test_fractions_out_of_range_are_errors(fraction):
    config = tiny()
    config.transformer.loss.head_fraction = fraction
    with pytest.raises(ConfigError, match=r"must be within \(0, 1\]"):
        validate(config)
