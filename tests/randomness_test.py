# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Random draws of training are independent where they should be, at fixed seeds.

Between depths, positions and steps for stochastic codes and restarts; between layers,
positions and steps for dropout; between microbatches.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from rq.models import quantizer
from rq.models.codebook import Update, init_codebook, update_codebook
from rq.models.stack import Stack, StackConfig
from rq.training import optimizer as optim

NUMBER, CODES = 4000, 6
NO_CHANCE = 1e-4  # a p-value below it is no accident; seeds are fixed


def independent(a, b) -> None:
    """Fails where two arrays of codes depend on each other, or are not uniform."""
    table = np.zeros((CODES, CODES))
    np.add.at(table, (np.ravel(a), np.ravel(b)), 1)
    assert scipy.stats.chisquare(table.ravel()).pvalue > NO_CHANCE, table


@pytest.mark.parametrize("own", [True, False])
def test_stochastic_codes_are_independent(own):
    """At so high a temperature that all codes are alike."""
    shape = (3, CODES, 2) if own else (CODES, 2)
    codebook = init_codebook(jax.random.key(0), shape)
    z = jax.random.normal(jax.random.key(1), (NUMBER // 4, 2, 2, 2))

    @jax.jit
    def draw(key):
        options = dict(depth=3, temperature=1e6, stochastic=True, key=key)
        return quantizer.quantize(z, codebook, **options).codes

    codes, other = (np.asarray(draw(jax.random.key(seed))) for seed in (2, 3))
    for d in range(3):
        independent(codes[..., d], codes[..., (d + 1) % 3])  # depths
        independent(codes[..., 0, d], codes[..., 1, d])  # columns
        independent(codes[:, 0, :, d], codes[:, 1, :, d])  # rows
        independent(codes[:-1, ..., d], codes[1:, ..., d])  # images
        independent(codes[..., d], other[..., d])  # steps


@pytest.mark.parametrize("own", [True, False])
def test_restarts_are_independent_of_depth_and_step(own):
    """Which vectors of the batch codes start from again: 64 codes, all of them dead."""
    number, depth = 64, 3
    shape = (depth, number, 4) if own else (number, 4)
    codebook = init_codebook(jax.random.key(0), shape)
    codebook = codebook.replace(embedding=0 * codebook.embedding)  # residuals stay z
    z = jax.random.normal(jax.random.key(1), (number, 4))

    def orders(key):
        keys = jax.random.split(key, depth)
        if own:
            options = dict(update=Update(decay=0.999), key=key)
            books = quantizer.quantize(z, codebook, **options).codebook.sums
        else:
            books = [
                update_codebook(
                    codebook, z, jnp.zeros(number, int), Update(decay=0.999), k
                ).sums
                for k in keys
            ]
        distance = np.linalg.norm(np.asarray(books)[:, :, None] - z, axis=-1)
        assert (distance.min(-1) < 1e-6).all()
        return distance.argmin(-1)

    first, second = orders(jax.random.key(2)), orders(jax.random.key(3))
    every = [*first, *second]
    for i, a in enumerate(every):
        assert sorted(a) == list(range(number))  # each vector once
        assert (a != np.arange(number)).mean() > 0.9  # in random order
        for b in every[:i]:
            assert (a != b).mean() > 0.9


def test_dropout_is_independent_between_layers_and_positions():
    """Blocks that add ones, twice each: what comes through counts the masks."""
    layers, width = 2, 32
    config = StackConfig(layers=layers, heads=1, residual_dropout=0.5)
    stack = Stack(config, jnp.float32)
    x = jnp.zeros((16, 8, width))
    params = stack.init(jax.random.key(0), x)["params"]

    def ones(path, leaf):
        names = [str(step.key) for step in path if hasattr(step, "key")]
        adds = names[-1] == "bias" and names[-2] in ("proj", "mlp_out")
        return jnp.full_like(leaf, float(adds))

    params = jax.tree_util.tree_map_with_path(ones, params)

    @jax.jit
    def run(key):
        rngs = {"dropout": key}
        return stack.apply({"params": params}, x, deterministic=False, rngs=rngs)[0]

    passed = np.asarray(run(jax.random.key(1))) / 2  # how many of four masks were 1
    counts = np.bincount(passed.astype(int).ravel(), minlength=2 * layers + 1)
    expected = scipy.stats.binom.pmf(range(2 * layers + 1), 2 * layers, 0.5)
    assert scipy.stats.chisquare(counts, expected * passed.size).pvalue > NO_CHANCE
    centred = passed - passed.mean()
    other = np.asarray(run(jax.random.key(2))) / 2
    for a, b in (
        (centred[1:], centred[:-1]),
        (centred[:, 1:], centred[:, :-1]),
        (centred[..., 1:], centred[..., :-1]),
        (centred, other - other.mean()),
    ):
        assert scipy.stats.pearsonr(a.ravel(), b.ravel()).pvalue > NO_CHANCE


@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_microbatches_have_keys_of_their_own_and_follow_each_other(microbatches):
    def gradients(state, batch, key):
        noise = jax.random.normal(key, (10_000,))
        grads = {"noise": noise, "mean": jnp.mean(batch["x"])}
        return grads, state + 1, {"sum": jnp.sum(batch["x"])}

    x = jnp.arange(8.0)
    grads, state, metrics = optim.accumulate_gradients(
        gradients, 0, {"x": x}, jax.random.key(0), microbatches
    )
    assert state == microbatches
    np.testing.assert_allclose(grads["mean"], x.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["sum"], x.sum() / microbatches, rtol=1e-6)
    np.testing.assert_allclose(jnp.var(grads["noise"]), 1 / microbatches, rtol=0.05)
