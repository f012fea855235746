# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Filters: which codes may be drawn from logits, and how sharply.

A filter is a function of logits `[..., K]`, codes already excluded at -inf, and its
value, and returns which codes it keeps, bool `[..., K]`. `FILTERS` has them by the name
of their field in `SamplingConfig`, in the order in which they are applied.

No filter sorts. "The highest, until ..." is a threshold, and the largest threshold that
keeps enough is found digit by digit: sums over the codes for all digits of one bit (on
CPUs) or four, several times faster than sorting them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rq.config import SamplingConfig
from rq.models.row_sums import largest, softmax, total

TINY = np.finfo(np.float32).tiny  # a smaller temperature rounds to 0


def top_k(logits: jax.Array, k: jax.Array) -> jax.Array:
    """Keeps the k most probable codes, and ties with the last; 0: all."""
    keys = _ordered(logits)

    def reaches(thresholds):
        seen = keys[..., None, :] >= thresholds[..., None]
        return total(seen.astype(jnp.int32))[..., 0] >= k

    return keys >= _largest(reaches, keys)


def top_p(logits: jax.Array, p: jax.Array) -> jax.Array:
    """Keeps the most probable codes until their mass reaches p; 1: all."""
    return _highest(logits, softmax(logits), p)


def min_p(logits: jax.Array, p: jax.Array) -> jax.Array:
    """Keeps codes of at least the fraction p of the highest probability; 0: all."""
    return logits >= largest(logits) + jnp.log(p)


def typical_p(logits: jax.Array, p: jax.Array) -> jax.Array:
    """Keeps the codes whose information is closest to the entropy; 1: all.

    Until their mass reaches p (Meister et al. 2022). The most probable code may go.
    """
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    probs = jnp.exp(log_probs)
    information = jnp.where(probs > 0, -log_probs, 0)
    entropy = total(probs * information)
    closeness = jnp.where(probs > 0, -jnp.abs(information - entropy), -jnp.inf)
    return _highest(closeness, probs, p)


FILTERS = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "typical_p": typical_p}
# Values that change nothing.
OFF = {name: getattr(SamplingConfig(), name)[0] for name in ("temperature", *FILTERS)}


def _highest(scores: jax.Array, probs: jax.Array, p: jax.Array) -> jax.Array:
    """Keeps codes of the highest scores until their mass reaches p, and ties.

    The first always stays, and so does the one with which the mass reaches p.
    """
    keys = _ordered(scores)

    def reaches(thresholds):
        seen = keys[..., None, :] >= thresholds[..., None]
        return total(jnp.where(seen, probs[..., None, :], 0))[..., 0] >= p

    threshold = jnp.minimum(_largest(reaches, keys), jnp.max(keys, -1, keepdims=True))
    return (keys >= threshold) & (probs > 0)


def _ordered(x: jax.Array) -> jax.Array:
    """Returns uint32 numbers in the order of float32 ones; -0 equals 0."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0, x), jnp.uint32)
    negative = bits >> 31 == 1
    return jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))


def _largest(holds: Callable[[jax.Array], jax.Array], keys: jax.Array) -> jax.Array:
    """Returns the largest uint32 `[..., 1]` for which `holds`, or 0.

    Args:
      holds: function of numbers `[..., N]` that holds up to some number.
      keys: gives the shape, `[..., K]`.
    """
    nothing = jnp.zeros_like(keys[..., :1])
    return jax.lax.platform_dependent(
        nothing,
        cpu=functools.partial(_search, holds, 1),
        default=functools.partial(_search, holds, 4),  # fewer kernels
    )


def _search(holds, bits: int, nothing: jax.Array) -> jax.Array:
    """Finds the number digit by digit, trying all digits of some bits at a time."""
    digits = jnp.arange(1, 1 << bits, dtype=jnp.uint32)

    def add_digit(i, found):
        shift = (32 - bits * (i + 1)).astype(jnp.uint32)
        held = holds(found | digits << shift)
        digit = jnp.sum(held, axis=-1, keepdims=True, dtype=jnp.uint32)
        return found | digit << shift

    return jax.lax.fori_loop(0, 32 // bits, add_digit, nothing)


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

    Each filter sees what the ones before it have left. Codes of equal logits stay or go
    together, and no filter excludes all. Nothing is computed for a filter that is off.

    Args:
      logits: `[..., K]`, the largest finite.
      temperature: above 0; a scalar, or `[..., 1]` of each row.
      **values: by filter, likewise; those that are missing are off.

    Returns:
      float32 `[..., K]`.
    """
    logits = _divide(logits.astype(jnp.float32), temperature)
    for name, keeps in FILTERS.items():
        if name in values:
            value = jnp.asarray(values[name])
            logits = jax.lax.cond(
                jnp.any(value != OFF[name]),
                functools.partial(_exclude, keeps, OFF[name]),
                lambda logits, value: logits,
                logits,
                value,
            )
    return logits


def _exclude(keeps, off, logits, value):
    kept = keeps(logits, value)
    if value.ndim:  # some rows may be without the filter
        kept |= value == off
    return jnp.where(kept, logits, -jnp.inf)


def _divide(logits: jax.Array, temperature) -> jax.Array:
    """Logits over a temperature, of which the largest stays finite."""
    temperature = jnp.maximum(temperature, TINY)
    top = largest(logits)
    fits = jnp.isfinite(top / temperature)
    # Near 0, where quotients overflow, only differences to the largest count.
    return jnp.where(fits, logits / temperature, (logits - top) / temperature)
