# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sums, maxima and draws along rows `[..., K]`, in the fastest form for the platform.

XLA's CPU compiler reduces a row in a scalar loop. There, rows are folded in halves
instead, which are vector operations, and random numbers are finished before anything is
reduced. Other platforms have their own reductions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

_TINY = np.finfo(np.float32).tiny


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


def softmax(x: jax.Array) -> jax.Array:
    """Returns the softmax of rows with a finite maximum."""
    exponentials = jnp.exp(x - largest(x))
    return exponentials / total(exponentials)


def draw(keys: jax.Array, logits: jax.Array) -> jax.Array:
    """Draws a code for each row, as `jax.random.categorical` does with the row's key.

    Args:
      keys: random keys `[B]`.
      logits: float32 `[B, K]`, without NaN.

    Returns:
      int32 `[B]`.
    """
    return jax.lax.platform_dependent(keys, logits, cpu=_draw_on_cpu, default=_draw)


def _draw(keys, logits):
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def _draw_on_cpu(keys, logits):
    size = logits.shape[-1]

    def uniform(key):
        return jax.random.uniform(key, (size,), minval=_TINY)

    # Fused with a reduction, random bits would be made in its scalar loop.
    noise = jax.lax.optimization_barrier(jax.vmap(uniform)(keys))
    scores = jax.lax.optimization_barrier(logits - jnp.log(-jnp.log(noise)))
    places = jnp.where(scores == largest(scores), jnp.arange(size), size)
    return _fold(jnp.minimum, places, size)[:, 0]
