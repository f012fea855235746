# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sums over all axes but the channels, fast on CPU: biases and GroupNorm.

XLA's CPU backend sums over the leading axes of an array one number at a time. As a
product with a row of ones the same sum is limited by memory alone, so that on CPU the
sums of this module are products, in full precision, and elsewhere plain sums. Training
needs them for gradients of biases, and for the statistics of GroupNorm and their
gradients.

Legend: B batch, P positions, C channels, G groups.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp


def sum_positions(x_BPC: jax.Array) -> jax.Array:
    """Returns sums over P: `[B, P, C]` to `[B, C]`."""

    def by_product(x_BPC):  # rows of ones for each image: no operand is transposed
        ones_B1P = jnp.ones((x_BPC.shape[0], 1, x_BPC.shape[1]), x_BPC.dtype)
        return jnp.matmul(ones_B1P, x_BPC, precision="highest")[:, 0]

    def plain(x_BPC):
        return jnp.sum(x_BPC, axis=1)

    return jax.lax.platform_dependent(x_BPC, cpu=by_product, default=plain)


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Returns `x + bias`, arrays `[..., C]` and `[C]` of one dtype."""
    return x + bias


def _add_bias_forward(x, bias):
    return x + bias, None


def _add_bias_backward(_, grad):
    flat = grad.reshape(1, -1, grad.shape[-1])
    return grad, sum_positions(flat)[0]


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_norm(x, scale, bias, groups: int, epsilon: float) -> jax.Array:
    """Returns GroupNorm of x, with the variance in two passes.

    The backward pass keeps x and the statistics alone.

    Args:
      x: `[B, ..., C]`, float32 or float64.
      scale, bias: `[C]`, of the same dtype.
      groups: G, divides C.
      epsilon: added to the variance.
    """
    return _group_norm_forward(x, scale, bias, groups, epsilon)[0]


def _group_means(sums_BC, groups: int, positions: int):
    """Returns the mean over each group for each of its channels, `[B, C]`."""
    batch, channels = sums_BC.shape
    size = channels // groups
    means = jnp.mean(sums_BC.reshape(batch, groups, size), axis=-1) / positions
    return jnp.repeat(means, size, axis=-1)


def _centred(x, mean_BC):
    batch, *positions, channels = x.shape
    x_BPC = x.reshape(batch, math.prod(positions), channels)
    return x_BPC - mean_BC[:, None]


def _group_norm_forward(x, scale, bias, groups, epsilon):
    positions = math.prod(x.shape[1:-1])
    x_BPC = x.reshape(x.shape[0], positions, x.shape[-1])
    mean = _group_means(sum_positions(x_BPC), groups, positions)
    centred = _centred(x, mean)
    variance = _group_means(sum_positions(centred**2), groups, positions)
    rate = jax.lax.rsqrt(variance + epsilon)
    y = centred * (rate * scale)[:, None] + bias
    return y.reshape(x.shape), (x, scale, mean, rate)


def _group_norm_backward(groups, epsilon, kept, grad):
    x, scale, mean, rate = kept
    positions = math.prod(x.shape[1:-1])
    grad_BPC = grad.reshape(x.shape[0], positions, x.shape[-1])
    centred = _centred(x, mean)
    of_bias = sum_positions(grad_BPC)
    of_scale = sum_positions(grad_BPC * centred) * rate
    mean_grad = _group_means(of_bias * scale, groups, positions)
    along = _group_means(of_scale * scale, groups, positions) * rate
    at_x = grad_BPC * scale - mean_grad[:, None] - centred * along[:, None]
    at_x *= rate[:, None]
    return at_x.reshape(x.shape), jnp.sum(of_scale, axis=0), jnp.sum(of_bias, axis=0)


group_norm.defvjp(_group_norm_forward, _group_norm_backward)
