# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Layers with their own backward passes equal those of Flax and of differentiation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rq.models import activations, channel_sums, quantizer
from rq.models.autoencoder import Conv
from rq.models.linear import Linear


def norms():
    """Returns ours and Flax's GroupNorm, of inputs far from zero, and arguments."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(3, 2, (2, 5, 4, 64)), jnp.float32)
    flax_norm = nn.GroupNorm(32, epsilon=1e-6, use_fast_variance=False)

    def expected(x, scale, bias):
        return flax_norm.apply({"params": {"scale": scale, "bias": bias}}, x)

    def ours(x, scale, bias):
        return channel_sums.group_norm(x, scale, bias, 32, 1e-6)

    scale, bias = jnp.asarray(rng.normal(size=(2, 64)), jnp.float32)
    return ours, expected, (x, scale, bias)


def denses():
    """Returns ours and Flax's dense layer as functions of parameters and inputs."""
    init = nn.initializers.normal(1.0)
    settings = dict(use_bias=True, dtype=jnp.float32, kernel_init=init, bias_init=init)
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    variables = Linear(16, **settings).init(jax.random.key(1), x)
    functions = (Linear(16, **settings).apply, nn.Dense(16, **settings).apply)
    return *functions, (variables, x)


def activated_denses():
    """Returns the same of activated inputs, narrower outputs, without biases."""
    settings = dict(use_bias=False, dtype=jnp.float32, bias_init=None)
    settings["kernel_init"] = nn.initializers.normal(1.0)
    layer = Linear(4, activation=activations.gelu, **settings)
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    variables = layer.init(jax.random.key(1), x)

    def expected(variables, x):
        return nn.gelu(x, approximate=False) @ variables["params"]["kernel"]

    return layer.apply, expected, (variables, x)


def convolutions_of_enlarged_images():
    """Returns ours and Flax's convolution of an image of repeated pixels."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 8))
    layer = Conv(6, enlarge=True)
    variables = nn.meta.unbox(layer.init(jax.random.key(1), x))

    def expected(variables, x):
        enlarged = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        parameters = {"params": variables["params"]["conv"]}
        return nn.Conv(6, (3, 3)).apply(parameters, enlarged)

    return layer.apply, expected, (variables, x)


def elementwise(ours, expected):
    return ours, expected, (jnp.linspace(-6, 6, 101),)


CASES = {
    "group norm": norms,
    "dense": denses,
    "dense of activations": activated_denses,
    "convolution of an enlarged image": convolutions_of_enlarged_images,
    "gelu": lambda: elementwise(
        activations.gelu, lambda x: nn.gelu(x, approximate=False)
    ),
    "swish": lambda: elementwise(activations.swish, nn.swish),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal_those_of_flax(case):
    ours, expected, arguments = CASES[case]()
    found, pull_ours = jax.vjp(ours, *arguments)
    wanted, pull_expected = jax.vjp(expected, *arguments)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    at = jax.random.normal(jax.random.key(2), wanted.shape)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5),
        pull_ours(at),
        pull_expected(at),
    )


def test_group_norm_of_a_large_mean_keeps_the_variance():
    x = 1000 + jax.random.normal(jax.random.key(0), (1, 8, 8, 32))
    y = channel_sums.group_norm(x, jnp.ones(32), jnp.zeros(32), 32, 1e-6)
    np.testing.assert_allclose(jnp.std(y, axis=(1, 2)), 1, atol=1e-3)


def test_the_nearest_code_is_the_lowest_of_equals():
    code, least = quantizer._argmin(jnp.array([[3.0, 1, 1], [2, 2, 2], [jnp.inf] * 3]))
    np.testing.assert_array_equal(code, [1, 0, 0])
    np.testing.assert_array_equal(least, [1, 2, jnp.inf])


def test_a_vector_of_nan_gets_a_code_that_exists():
    code, _ = quantizer._argmin(jnp.array([[jnp.nan] * 3]))
    assert code[0] == 0
