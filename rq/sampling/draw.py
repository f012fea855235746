# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Draws a code from each row of logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rq.models import row_sums

_TINY = np.finfo(np.float32).tiny


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
    places = jnp.where(scores == row_sums.largest(scores), jnp.arange(size), size)
    return row_sums.smallest(places, size)[:, 0]
