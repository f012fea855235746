# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sums, minima and maxima along rows `[..., K]`, fast on CPU.

XLA's CPU compiler reduces a row in a scalar loop. There, rows are folded in halves
instead, which are vector operations. Other platforms have their own reductions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def _fold(combine, x: jax.Array, neutral) -> jax.Array:
    """Returns `[..., 1]`: combines the halves of a row until one value is left."""
    size = x.shape[-1]
    padding = (1 << (size - 1).bit_length()) - size  # to a power of 2
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)], constant_values=neutral)
    while x.shape[-1] > 1:
        x = combine(*jnp.split(x, 2, axis=-1))
    return x


def total(x: jax.Array) -> jax.Array:
    """Returns the sums `[..., 1]` of rows `[..., K]`."""
    return jax.lax.platform_dependent(
        x,
        cpu=lambda x: _fold(jnp.add, x, 0),
        default=lambda x: jnp.sum(x, axis=-1, keepdims=True),
    )


def largest(x: jax.Array) -> jax.Array:
    """Returns the maxima `[..., 1]` of rows of floats; NaN where there is any."""
    return jax.lax.platform_dependent(
        x,
        cpu=lambda x: _fold(jnp.maximum, x, -jnp.inf),
        default=lambda x: jnp.max(x, axis=-1, keepdims=True),
    )


def smallest(x: jax.Array, bound: int) -> jax.Array:
    """Returns the minima `[..., 1]` of rows of integers of at most `bound`."""
    return jax.lax.platform_dependent(
        x,
        cpu=lambda x: _fold(jnp.minimum, x, bound),
        default=lambda x: jnp.min(x, axis=-1, keepdims=True),
    )


def softmax(x: jax.Array) -> jax.Array:
    """Returns the softmax of rows with a finite maximum."""
    exponentials = jnp.exp(x - largest(x))
    return exponentials / total(exponentials)
