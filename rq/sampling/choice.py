# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Chooses the codes of one step: guidance, filters, and what is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rq.models import row_sums
from rq.sampling.draw import draw
from rq.sampling.filters import filter_logits
from rq.sampling.guidance import combine


class Request(NamedTuple):
    """What a batch of samples is drawn from, and how; see `rq.sampling.program.sample`.

    Attributes:
      params, codebook: of the unrolled model.
      cond: with guidance, both conditions of each sample.
      key: random key of the whole job.
      filters, guidance: values by name, and scales or None.
      first_index: of the first sample in the job.
      codes: int32 `[B, H, W, D]`.
      keep: bool, broadcast to the same, codes that are not drawn.
    """

    params: Any
    codebook: Any
    cond: jax.Array | None
    key: jax.Array
    filters: dict[str, jax.Array]
    guidance: jax.Array | None
    first_index: jax.Array
    codes: jax.Array
    keep: jax.Array

    @property
    def keys(self) -> jax.Array:
        """Random keys of each sample, `[B]`, folded from its index."""
        indices = self.first_index + jnp.arange(len(self.codes), dtype=jnp.int32)
        return jax.vmap(jax.random.fold_in, (None, 0))(self.key, indices)

    @property
    def kept(self) -> jax.Array:
        """`keep`, `[B, H, W, D]`."""
        return jnp.broadcast_to(self.keep, self.codes.shape)


def with_null(cond, null_cond) -> jax.Array:
    """Returns conditions `[2 B, ...]`: as given, then none.

    Raises:
      ValueError: where one of them is missing.
    """
    if cond is None or null_cond is None:
        raise ValueError("guidance needs `cond` and `null_cond`")
    null_cond = jnp.broadcast_to(jnp.asarray(null_cond, cond.dtype), cond.shape)
    return jnp.concatenate([cond, null_cond])


def copies_of(guidance) -> int:
    """With guidance every sample has two rows: with its condition, then without."""
    return 1 if guidance is None else 2


def make_choice(sizes, filters, scale, keys, given, kept) -> Callable:
    """Returns the function of logits and depth that `depth_codes` takes.

    Args:
      sizes: codes that exist at each depth.
      filters: values by name, `[D]` or `[D, R, 1]`, see `filters.make_filters`.
      scale: of guidance, `[D]` or `[D, R, 1]`; logits are then those of `combine`.
        None: off.
      keys: of each row at this position, `[R]`.
      given: codes `[R, D]`, chosen where `kept` `[R, D]`.
    """
    sizes, copies = jnp.asarray(sizes), copies_of(scale)

    def choose(logits, d):
        if scale is not None:
            logits = combine(logits, scale[d])
        # Codes that a smaller codebook lacks, at no temperature.
        exists = jnp.arange(logits.shape[-1]) < sizes[d]
        possible = jnp.where(exists, logits, -jnp.inf)
        values = {name: value[d] for name, value in filters.items()}
        filtered = filter_logits(possible, **values)
        depth_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, d)
        drawn = draw(depth_keys, filtered)
        # The largest is NaN where any is.
        finite = jnp.isfinite(row_sums.largest(possible)[:, 0])
        drawn = jnp.where(finite, drawn, -1)
        chosen = jnp.where(kept[:, d], given[:, d], drawn)
        return jnp.tile(chosen, copies), logits

    return choose
