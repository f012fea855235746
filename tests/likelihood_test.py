# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Likelihoods are probabilities, of the very model that samples."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_test import tiny

from rq.sampling import likelihood, program


@pytest.mark.parametrize(
    "code_shape",
    [
        (1, 2, 2),
        *(pytest.param(x, marks=pytest.mark.slow) for x in ((1, 1, 3), (2, 2, 1))),
    ],
)
def test_all_continuations_sum_to_one(code_shape):
    size, number = 4, int(np.prod(code_shape))
    model, params, codebook = tiny(code_shape=code_shape, num_codes=(size,))
    every = np.array(list(itertools.product(range(size), repeat=number)), np.int32)
    codes = jnp.asarray(every.reshape(-1, *code_shape))
    cond = jnp.full(len(codes), 2)
    log_probs = likelihood.log_likelihood(model, params, codebook[:size], codes, cond)
    assert log_probs.shape == codes.shape and log_probs.dtype == jnp.float32
    totals = np.asarray(log_probs, np.float64).sum((1, 2, 3))
    np.testing.assert_allclose(np.exp(totals).sum(), 1, rtol=1e-5)


def test_likelihood_is_that_of_the_sampler():
    model, params, codebook = tiny()
    cond = jnp.array([1, 3])
    codes, logits = program.sample(
        model, params, codebook, cond, jax.random.key(0), return_logits=True
    )
    drawn = jnp.take_along_axis(jax.nn.log_softmax(logits), codes[..., None], -1)
    found = likelihood.log_likelihood(model, params, codebook, codes, cond)
    np.testing.assert_allclose(found, drawn[..., 0], 1e-4, 1e-4)


def test_ranking_finds_the_condition_of_samples():
    model, params, codebook = tiny(scale=6)
    cond = jnp.arange(5).repeat(20)
    codes = program.sample(model, params, codebook, cond, jax.random.key(0))
    scores = likelihood.by_condition(model, params, codebook, codes, jnp.arange(5))
    scores = scores.sum(-1)
    assert scores.shape == (100, 5)
    np.testing.assert_allclose(
        scores[20:40, 1],
        likelihood.log_likelihood(model, params, codebook, codes, cond).sum((1, 2, 3))[
            20:40
        ],
        rtol=1e-5,
    )
    assert np.mean(np.argmax(scores, 1) == cond) > 0.8
