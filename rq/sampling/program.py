# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sampling codes: one compiled program for a whole batch (paper section 3.2).

A scan over positions with the body's caches in its carry, a scan over depth inside it;
nothing crosses to the host in between. Filters and guidance are traced values, so that
another temperature compiles nothing. Every sample has a random key of its own, folded
from its index, and so does not depend on the batch that it is drawn in.

Models of any order draw positions in the order that is given, several at once where
`group_starts` are (`rq.sampling.groups`), and coarse codes of all before finer ones
where `levels` are (`rq.sampling.levels`).

`sample_rows` returns to the host after each row of positions, for those who show images
while they are drawn; the codes are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from rq.models import decoding
from rq.models.transformer import CodeVectors, RQTransformer, at_positions
from rq.models.unroll import unroll
from rq.sampling.choice import Request, copies_of, make_choice, with_null
from rq.sampling.groups import draw_groups
from rq.sampling.levels import Steps, draw_levels
from rq.sampling.order import closed, in_order


def sample(
    model: RQTransformer,
    params,
    codebook: CodeVectors | None,
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
    order: jax.typing.ArrayLike | None = None,
    group_starts: jax.typing.ArrayLike | None = None,
    largest_group: int = 0,
    levels: Steps | None = None,
    depth: int | None = None,
):
    """Draws code maps.

    Args:
      model: the transformer; `unroll` it (and its parameters) once when sampling many
        batches, otherwise it is done in each call.
      params: its parameters.
      codebook: code vectors `[K, C]` or `[D, K, C]`, or both images' (`Codebooks`).
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
      codes: given codes int32 `[B, H, W, D]`; those at `keep` are not drawn. D may be
        smaller than the model's: then the first D codes of each position are drawn, and
        the body reads no others.
      keep: bool, broadcast to `[B, H, W, D]`.
      return_logits: also returns the logits of every step, guided but not filtered,
        `[B, H, W, D, K]`; with all codes kept this is a teacher-forced decode.
      order: int32 `[T]` or `[B, T]`, in which order a model of any order draws
        positions; None: row by row.
      group_starts: int32 `[S + 1]`: positions number `group_starts[s]` to
        `group_starts[s + 1]` - 1 in the order are drawn at once, in step s; all before
        `group_starts[0]` must be kept. None: one at a time.
      largest_group: a bound of their sizes, to which all are padded.
      levels: steps of `rq.sampling.levels`, in place of an order and groups; their
        groups are bounded by `largest_group` too.
      depth: D where `codes` are not given; the model's if None.

    Returns:
      codes int32 `[B, H, W, D]`; -1 where the model's logits were not finite, so that
      there was nothing to draw from.

    Raises:
      ValueError: where neither `cond` nor `batch` nor `codes` gives the batch size, or
        guidance lacks one of its two conditions, or a model of raster order is given
        another, or groups.
    """
    batches = [x.shape[0] for x in (cond, codes) if x is not None] + [batch]
    if batches[0] is None:
        raise ValueError("sampling needs `cond`, `codes` or `batch`")
    model, params = unroll(model, params)
    if codes is None:
        shape = (*model.code_shape[:2], depth or model.depth)
        codes = jnp.zeros((batches[0], *shape), jnp.int32)
        keep = False
    if guidance is not None:
        cond = with_null(cond, null_cond)
    order = _check_order(model, order, group_starts, levels)
    request = Request(
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
    grouped = group_starts is not None or levels is not None
    if grouped and return_logits:
        raise ValueError("logits are not returned of positions drawn in groups")
    if levels is not None:
        return draw_levels(model, largest_group, request, levels)
    if group_starts is not None:
        starts = jnp.asarray(group_starts, jnp.int32)
        return draw_groups(model, largest_group, request, order, starts)
    drawn, logits = _sample(model, return_logits, request, order)
    return (drawn, logits) if return_logits else drawn


def _check_order(model, order, group_starts, levels):
    """Returns the order, int32 `[T]` or `[B, T]`; None of a model of raster order."""
    if model.any_order:
        return jnp.asarray(range(model.positions) if order is None else order)
    if any(x is not None for x in (order, group_starts, levels)):
        raise ValueError("the model reads positions row by row: no other order")
    return None


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sample(model, return_logits, request: Request, order):
    codes, keep = request.codes, request.kept
    params, codebook, guidance = request.params, request.codebook, request.guidance
    if order is not None:
        order = jnp.broadcast_to(order, (len(codes), model.positions))
        codes, keep = (in_order(x, order) for x in (codes, keep))
    rows = len(codes) * copies_of(guidance)
    carry = _start(model, params, codebook, request.cond, rows, order)
    _, drawn, logits = _draw_rows(
        model,
        return_logits,
        params,
        codebook,
        request.keys,
        request.filters,
        guidance,
        carry,
        jnp.int32(0),
        codes,
        keep,
        None if order is None else closed(order),
    )
    if order is not None:
        drawn = in_order(drawn, jnp.argsort(order, axis=1))
        if return_logits:
            logits = in_order(logits, jnp.argsort(order, axis=1))
    return drawn, logits


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
    order=None,
):
    """Draws rows of positions, from position number `first` on.

    Args:
      model, return_logits, params, codebook: see `sample`; the model is unrolled.
      keys: of each sample, `[B]`.
      filters, guidance: see `sample_rows`.
      carry: the body's next input, caches and hints, see `source_hints`.
      first: number of a position.
      codes: given codes `[B, h, W, D]` of h rows, or of h W positions in an order.
      keep: of their shape.
      order: these positions and the one after them `[B, h W + 1]`; None: row by row.

    Returns:
      the next carry, codes `[B, h, W, D]`, and logits `[B, h, W, D, K]` or None.
    """
    batch, height, width, depth = codes.shape
    copies = copies_of(guidance)

    def apply(method, *args):
        return model.apply({"params": params}, *args, method=method)

    def flat(x):
        return jnp.moveaxis(x.reshape(batch, height * width, depth), 1, 0)

    def one_position(carry, inputs):
        x, caches, hints = carry
        step, given, kept, places = inputs
        if hints is not None:
            here = jnp.broadcast_to(step, (batch,)) if places is None else places[0]
            x += at_positions(hints, jnp.tile(here, copies))
        context, caches = apply(decoding.position_step, x, caches, step)
        position, following = (step, None) if places is None else places
        axis = None if places is None else 0
        position_keys = jax.vmap(jax.random.fold_in, (0, axis))(keys, position)
        scale = None if guidance is None else guidance[step]
        choose = make_choice(model.sizes, filters, scale, position_keys, given, kept)
        chosen, logits = apply(decoding.depth_codes, context, codebook, choose, depth)
        if places is not None:
            position, following = (jnp.tile(x, copies) for x in places)
        x = apply(decoding.next_input, chosen, position, codebook, following)
        carry = (x, caches, hints)
        return carry, (chosen[:batch], logits if return_logits else None)

    steps = first + jnp.arange(height * width)
    places = None if order is None else (order[:, :-1].T, order[:, 1:].T)
    inputs = (steps, flat(codes), flat(keep), places)
    carry, (drawn, logits) = jax.lax.scan(one_position, carry, inputs)
    drawn = jnp.moveaxis(drawn, 0, 1).reshape(codes.shape)
    if return_logits:
        logits = jnp.moveaxis(logits, 0, 1).reshape(*codes.shape, -1)
    return carry, drawn, logits


def sample_rows(
    model: RQTransformer,
    params,
    codebook: CodeVectors | None,
    cond: jax.Array | None,
    keys: jax.Array,
    codes: jax.Array,
    keep: jax.Array,
    *,
    filters: dict[str, jax.Array],
    guidance: jax.Array | None = None,
    null_cond: jax.Array | None = None,
    order: jax.Array | None = None,
) -> Iterator[jax.Array]:
    """Yields the codes that `sample` draws, one row of positions after another.

    Models of any order draw W positions at a time, the next in the order. Each row is
    one call of a compiled program, the same for all rows; the caches stay on the
    devices. Samples of a batch may have options of their own.

    Args:
      model, params, codebook, cond, null_cond: see `sample`.
      keys: of each sample, `[B]`: `fold_in(key, index)` of its own job and index.
      codes: given codes int32 `[B, H, W, D]`.
      keep: bool `[B, H, W, D]`, those that are not drawn.
      filters: values by name, `[D]`, or `[D, B, 1]` of each sample.
      guidance: scales `[T, D]`, or `[T, D, B, 1]` of each sample; None: off.
      order: int32 `[B, T]`, of a model of any order.

    Yields:
      int32 `[B, W, D]`, as soon as it is dispatched.

    Raises:
      ValueError: where guidance lacks one of its two conditions.
    """
    model, params = unroll(model, params)
    if guidance is not None:
        cond = with_null(cond, null_cond)
    rows = len(codes) * copies_of(guidance)
    carry = _start(model, params, codebook, cond, rows, order)
    _, height, width, _ = codes.shape
    if order is not None:
        codes, keep = (in_order(x, order) for x in (codes, keep))
        order = closed(order)
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
            order if order is None else order[:, row * width : (row + 1) * width + 1],
        )
        yield drawn[:, 0]


@functools.partial(jax.jit, static_argnums=(0, 4))
def _start(model, params, codebook, cond, rows, order=None):
    if order is not None:
        order = jnp.tile(order[:, 0], rows // len(order))

    def apply(method, *args):
        return model.apply({"params": params}, *args, method=method)

    started = apply(decoding.start, cond, rows, order, 0, codebook)
    return *started, apply("source_hints", cond, rows, codebook)


_draw_row = jax.jit(_draw_rows, static_argnums=(0, 1), donate_argnames="carry")
