# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Activation functions whose backward pass keeps their inputs alone.

Automatic differentiation keeps several intermediate arrays of each, which costs more
memory traffic than computing them again. Both compute in float32 at least.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def identity(x: jax.Array) -> jax.Array:
    """Returns x."""
    return x


def quick_gelu(x: jax.Array) -> jax.Array:
    """Returns x times the logistic function of 1.702 x, an approximation of GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Returns x times the normal distribution function of x, by erf as PyTorch."""
    wide = _wide(x)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _normal_cdf(x):
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


def _gelu_backward(x, grad):
    wide = _wide(x)
    density = jnp.exp(-0.5 * wide**2) * (2 * jnp.pi) ** -0.5
    return (((_normal_cdf(wide) + wide * density) * grad).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


@jax.custom_vjp
def swish(x: jax.Array) -> jax.Array:
    """Returns x times the logistic function of x."""
    wide = _wide(x)
    return (wide * jax.lax.logistic(wide)).astype(x.dtype)


def _swish_backward(x, grad):
    wide = _wide(x)
    gate = jax.lax.logistic(wide)
    return ((gate * (1 + wide * (1 - gate)) * grad).astype(x.dtype),)


swish.defvjp(lambda x: (swish(x), x), _swish_backward)
