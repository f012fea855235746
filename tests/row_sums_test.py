# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of sums, maxima and draws along rows."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from rq.models import row_sums
from rq.sampling.draw import draw

SIZES = st.sampled_from([1, 2, 31, 64, 300])  # few, since each compiles
drawn = jax.jit(draw)
drawn_by_jax = jax.jit(jax.vmap(jax.random.categorical))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), size=SIZES, kept=st.floats(0, 1))
def test_draws_are_those_of_jax(seed, size, kept):
    """For any number of codes, some of them excluded."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(5, size)).astype(np.float32)
    logits[:, 1:][rng.random((5, size - 1)) > kept] = -np.inf
    keys = jax.random.split(jax.random.key(seed), 5)
    np.testing.assert_array_equal(drawn(keys, logits), drawn_by_jax(keys, logits))


@pytest.mark.parametrize("size", [1, 2, 3, 64, 1000, 16_384])
def test_sums_and_maxima_are_those_of_numpy(size):
    x = np.random.default_rng(0).normal(size=(2, 3, size)).astype(np.float32)
    expected = x.sum(axis=-1, keepdims=True, dtype=np.float64)
    np.testing.assert_allclose(row_sums.total(x), expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(row_sums.largest(x), x.max(axis=-1, keepdims=True))
    counts = (x > 0).astype(np.int32)
    np.testing.assert_array_equal(row_sums.total(counts), counts.sum(-1, keepdims=True))
    np.testing.assert_allclose(row_sums.softmax(x), jax.nn.softmax(x), rtol=1e-5)


def test_a_row_with_nan_has_the_maximum_nan():
    x = jnp.array([[1.0, jnp.nan, 2.0], [jnp.inf, 0, 1], [-jnp.inf] * 3])
    np.testing.assert_array_equal(
        row_sums.largest(x), [[jnp.nan], [jnp.inf], [-jnp.inf]]
    )
