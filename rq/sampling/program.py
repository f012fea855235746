# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sampling codes: one compiled program for a whole batch (paper section 3.2).

A scan over positions with the body's caches in its carry, a scan over depth inside it;
nothing crosses to the host in between. Filters and guidance are traced values, so that
another temperature compiles nothing. Every sample has a random key of its own, folded
from its index, and so does not depend on the batch that it is drawn in.

`sample_rows` returns to the host after each row of positions, for those who show images
while they are drawn; the codes are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from rq.models import row_sums
from rq.models.transformer import RQTransformer
from rq.models.unroll import unroll
from rq.sampling.draw import draw
from rq.sampling.filters import filter_logits
from rq.sampling.guidance import combine


def sample(
    model: RQTransformer,
    params,
    codebook: jax.Array | None,
    cond: jax.Array | None,
    key: jax.Array,
    *,
    batch: int | None = None,
    filters: dict[str, jax.Array] | None = None,
    guidance: jax.Array | None = None,
    null_cond: jax.Array | None = None,
    first_index=0,
    codes: jax.Array | None = None,
    keep: jax.typing.ArrayLike | None = None,
    return_logits: bool = False,
):
    """Draws code maps.

    Args:
      model: the transformer; `unroll` it (and its parameters) once when sampling many
        batches, otherwise it is done in each call.
      params: its parameters.
      codebook: code vectors `[K, C]` or `[D, K, C]`.
      cond: int32 `[B]` classes or `[B, S]` tokens; None: the start token, B from
        `batch`.
      key: random key of the whole job.
      filters: values by name, each `[D]`, see `filters.make_filters`; None: all off.
      guidance: scales `[T, D]`, see `guidance.make_guidance`; None: off, which halves
        the cost.
      null_cond: what stood for no condition in training, as `cond` of one sample
        (a scalar, or `[S]`); guidance needs it.
      first_index: index of the first sample in the job; sample i uses
        `fold_in(key, first_index + i)`.
      codes: given codes int32 `[B, H, W, D]`; those at `keep` are not drawn.
      keep: bool, broadcast to `[B, H, W, D]`.
      return_logits: also returns the logits of every step, guided but not filtered,
        `[B, H, W, D, K]`; with all codes kept this is a teacher-forced decode.

    Returns:
      codes int32 `[B, H, W, D]`; -1 where the model's logits were not finite, so that
      there was nothing to draw from.

    Raises:
      ValueError: where neither `cond` nor `batch` nor `codes` gives the batch size, or
        guidance lacks one of its two conditions.
    """
    batches = [x.shape[0] for x in (cond, codes) if x is not None] + [batch]
    if batches[0] is None:
        raise ValueError("sampling needs `cond`, `codes` or `batch`")
    model, params = unroll(model, params)
    if codes is None:
        codes = jnp.zeros((batches[0], *model.code_shape), jnp.int32)
        keep = False
    if guidance is not None:
        cond = _with_null(cond, null_cond)
    drawn, logits = _sample(
        model,
        return_logits,
        params,
        codebook,
        cond,
        key,
        filters or {},
        guidance,
        jnp.asarray(first_index, jnp.int32),
        codes,
        jnp.asarray(keep, bool),
    )
    return (drawn, logits) if return_logits else drawn


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sample(
    model,
    return_logits,
    params,
    codebook,
    cond,
    key,
    filters,
    guidance,
    first_index,
    codes,
    keep,
):
    indices = first_index + jnp.arange(len(codes), dtype=jnp.int32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
    carry = _start(model, params, cond, len(codes) * _copies(guidance))
    _, drawn, logits = _draw_rows(
        model,
        return_logits,
        params,
        codebook,
        keys,
        filters,
        guidance,
        carry,
        jnp.int32(0),
        codes,
        keep,
    )
    return drawn, logits


def _with_null(cond, null_cond):
    """Returns conditions `[2 B, ...]`: as given, then none.

    Raises:
      ValueError: where one of them is missing.
    """
    if cond is None or null_cond is None:
        raise ValueError("guidance needs `cond` and `null_cond`")
    null_cond = jnp.broadcast_to(jnp.asarray(null_cond, cond.dtype), cond.shape)
    return jnp.concatenate([cond, null_cond])


def _copies(guidance) -> int:
    """With guidance every sample has two rows: with its condition, then without."""
    return 1 if guidance is None else 2


def _draw_rows(
    model,
    return_logits,
    params,
    codebook,
    keys,
    filters,
    guidance,
    carry,
    first,
    codes,
    keep,
):
    """Draws rows of positions, from position `first` on.

    Args:
      model, return_logits, params, codebook: see `sample`; the model is unrolled.
      keys: of each sample, `[B]`.
      filters, guidance: see `sample_rows`.
      carry: the body's next input and caches.
      first: a position.
      codes: given codes `[B, h, W, D]` of h rows.
      keep: broadcast to their shape.

    Returns:
      the next carry, codes `[B, h, W, D]`, and logits `[B, h, W, D, K]` or None.
    """
    batch, height, width, depth = codes.shape
    keep = jnp.broadcast_to(keep, codes.shape)
    copies, sizes = _copies(guidance), jnp.asarray(model.sizes)

    def apply(method, *args):
        return model.apply({"params": params}, *args, method=method)

    def flat(x):
        return jnp.moveaxis(x.reshape(batch, height * width, depth), 1, 0)

    def one_position(carry, inputs):
        x, caches = carry
        position, given, kept = inputs
        context, caches = apply("position_step", x, caches, position)
        position_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, position)

        def choose(logits, d):
            if guidance is not None:
                logits = combine(logits, guidance[position, d])
            # Codes that a smaller codebook lacks, at no temperature.
            exists = jnp.arange(logits.shape[-1]) < sizes[d]
            possible = jnp.where(exists, logits, -jnp.inf)
            values = {name: value[d] for name, value in filters.items()}
            filtered = filter_logits(possible, **values)
            depth_keys = jax.vmap(jax.random.fold_in, (0, None))(position_keys, d)
            drawn = draw(depth_keys, filtered)
            # The largest is NaN where any is.
            finite = jnp.isfinite(row_sums.largest(possible)[:, 0])
            drawn = jnp.where(finite, drawn, -1)
            chosen = jnp.where(kept[:, d], given[:, d], drawn)
            return jnp.tile(chosen, copies), logits

        chosen, logits = apply("depth_codes", context, codebook, choose)
        x = apply("next_input", chosen, position, codebook)
        return (x, caches), (chosen[:batch], logits if return_logits else None)

    inputs = (first + jnp.arange(height * width), flat(codes), flat(keep))
    carry, (drawn, logits) = jax.lax.scan(one_position, carry, inputs)
    drawn = jnp.moveaxis(drawn, 0, 1).reshape(codes.shape)
    if return_logits:
        logits = jnp.moveaxis(logits, 0, 1).reshape(*codes.shape, -1)
    return carry, drawn, logits


def sample_rows(
    model: RQTransformer,
    params,
    codebook: jax.Array | None,
    cond: jax.Array | None,
    keys: jax.Array,
    codes: jax.Array,
    keep: jax.Array,
    *,
    filters: dict[str, jax.Array],
    guidance: jax.Array | None = None,
    null_cond: jax.Array | None = None,
) -> Iterator[jax.Array]:
    """Yields the codes that `sample` draws, one row of positions after another.

    Each row is one call of a compiled program, the same for all rows; the caches stay
    on the devices. Samples of a batch may have options of their own.

    Args:
      model, params, codebook, cond, null_cond: see `sample`.
      keys: of each sample, `[B]`: `fold_in(key, index)` of its own job and index.
      codes: given codes int32 `[B, H, W, D]`.
      keep: bool `[B, H, W, D]`, those that are not drawn.
      filters: values by name, `[D]`, or `[D, B, 1]` of each sample.
      guidance: scales `[T, D]`, or `[T, D, B, 1]` of each sample; None: off.

    Yields:
      int32 `[B, W, D]`, as soon as it is dispatched.

    Raises:
      ValueError: where guidance lacks one of its two conditions.
    """
    model, params = unroll(model, params)
    if guidance is not None:
        cond = _with_null(cond, null_cond)
    carry = _start(model, params, cond, len(codes) * _copies(guidance))
    _, height, width, _ = codes.shape
    for row in range(height):
        carry, drawn, _ = _draw_row(
            model,
            False,
            params,
            codebook,
            keys,
            filters,
            guidance,
            carry,
            jnp.int32(row * width),
            codes[:, row : row + 1],
            keep[:, row : row + 1],
        )
        yield drawn[:, 0]


@functools.partial(jax.jit, static_argnums=(0, 3))
def _start(model, params, cond, rows):
    return model.apply({"params": params}, cond, rows, method="start")


_draw_row = jax.jit(_draw_rows, static_argnums=(0, 1), donate_argnames="carry")
