# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Filters: which codes may be drawn from logits, and how sharply.

A filter is a function of the scaled logits in descending order `[..., K]` and its value
to the (lowest, highest) logit that stays, `[..., 1]` or a number. `FILTERS` has them by
the name of their field in `SamplingConfig`, in the order in which they are applied;
each sees what the ones before it have left, the rest at -inf.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rq.config import SamplingConfig

TINY = np.finfo(np.float32).tiny  # a smaller temperature rounds to 0


def top_k(ranked: jax.Array, k: jax.Array):
    """Keeps the k most probable codes, and ties with the last; 0: all."""
    size = ranked.shape[-1]
    k = jnp.where(k == 0, size, jnp.minimum(k, size))
    return jnp.take(ranked, k - 1, axis=-1)[..., None], jnp.inf


def top_p(ranked: jax.Array, p: jax.Array):
    """Keeps the most probable codes until their mass reaches p; 1: all."""
    probs = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs
    # The first code always stays, and so does the one with which the mass reaches p.
    kept = jnp.sum((before < p) & (probs > 0), axis=-1, keepdims=True)
    last = jnp.take_along_axis(ranked, jnp.maximum(kept, 1) - 1, axis=-1)
    return jnp.where(p < 1, last, -jnp.inf), jnp.inf


def min_p(ranked: jax.Array, p: jax.Array):
    """Keeps codes of at least the fraction p of the highest probability; 0: all."""
    return ranked[..., :1] + jnp.log(p), jnp.inf


def typical_p(ranked: jax.Array, p: jax.Array):
    """Keeps the codes whose information is closest to the entropy; 1: all.

    Until their mass reaches p (Meister et al. 2022). The most probable code may go.
    """

    def bounds(ranked):
        log_probs = jax.nn.log_softmax(ranked, axis=-1)
        probs = jnp.exp(log_probs)
        information = jnp.where(probs > 0, -log_probs, 0)
        entropy = jnp.sum(probs * information, axis=-1, keepdims=True)
        distance = jnp.where(probs > 0, jnp.abs(information - entropy), jnp.inf)
        nearest, mass = jax.lax.sort((distance, probs), num_keys=1)
        kept = jnp.sum(jnp.cumsum(mass, axis=-1) - mass < p, axis=-1, keepdims=True)
        farthest = jnp.take_along_axis(nearest, jnp.maximum(kept, 1) - 1, axis=-1)
        near = (distance <= farthest) & (probs > 0)
        low = jnp.min(jnp.where(near, ranked, jnp.inf), axis=-1, keepdims=True)
        high = jnp.max(jnp.where(near, ranked, -jnp.inf), axis=-1, keepdims=True)
        return low, high

    def everything(ranked):
        infinity = jnp.full_like(ranked[..., :1], jnp.inf)
        return -infinity, infinity

    return jax.lax.cond(p < 1, bounds, everything, ranked)


FILTERS = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "typical_p": typical_p}
# What every value is where it changes nothing.
OFF = {name: getattr(SamplingConfig(), name)[0] for name in ("temperature", *FILTERS)}


def make_filters(config: SamplingConfig, depth: int) -> dict[str, jax.Array]:
    """Returns temperature and filter values by name, each `[D]`, for `sample`.

    Raises:
      ConfigError: where a field has neither 1 nor D values.
    """
    config.check_depth(depth)
    return {
        name: jnp.broadcast_to(_as_array(getattr(config, name), neutral), (depth,))
        for name, neutral in OFF.items()
    }


def _as_array(values: tuple, like: int | float) -> np.ndarray:
    """int32 or float32 `[n]`; what is beyond the type's range becomes its end."""
    if isinstance(like, int):
        return np.minimum(np.asarray(values, object), np.iinfo(np.int32).max).astype(
            np.int32
        )
    return np.clip(values, None, np.finfo(np.float32).max).astype(np.float32)


def filter_logits(logits: jax.Array, temperature=1.0, **values) -> jax.Array:
    """Returns logits divided by the temperature, those of excluded codes at -inf.

    One sort serves all filters, and none happens where all are off. A filter keeps an
    interval of logits, so codes of equal logits stay or go together; it never excludes
    all.

    Args:
      logits: `[..., K]`, the largest finite.
      temperature: scalar above 0.
      **values: scalars by filter; those that are missing are off.

    Returns:
      float32 `[..., K]`.
    """
    logits = _divide(logits.astype(jnp.float32), temperature)

    def keep(logits):
        ranked = -jnp.sort(-logits, axis=-1)
        stays = True
        for name, bounds in FILTERS.items():
            if name in values:
                low, high = bounds(ranked, values[name])
                stays &= (logits >= low) & (logits <= high)
                ranked = jnp.where((ranked >= low) & (ranked <= high), ranked, -jnp.inf)
        return jnp.where(stays, logits, -jnp.inf)

    is_on = [jnp.asarray(x) != OFF[name] for name, x in values.items()]
    if not is_on:
        return logits
    any_on = jnp.any(jnp.stack(is_on))
    return jax.lax.cond(any_on, keep, lambda logits: logits, logits)


def _divide(logits: jax.Array, temperature) -> jax.Array:
    """Logits over a temperature, of which the largest stays finite."""
    temperature = jnp.maximum(temperature, TINY)
    top = jnp.max(logits, axis=-1, keepdims=True)
    fits = jnp.isfinite(top / temperature)
    # Near 0, where quotients overflow, only differences to the largest count.
    return jnp.where(fits, logits / temperature, (logits - top) / temperature)
