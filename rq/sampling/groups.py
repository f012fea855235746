# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Draws several positions at once, with a body that takes them in any order.

    step s: the body reads, after all that is drawn, one query for each position of the
    group: the last codes drawn, and which position is asked for. It is what the body
    reads when that position comes next, so that each context is that of the model. The
    positions of one group are drawn independently of each other.

All groups are padded to the size of the largest: one compiled program.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from rq.models import decoding
from rq.models.transformer import at_positions
from rq.sampling.choice import copies_of, make_choice, sample_keys
from rq.sampling.order import in_order


@functools.partial(jax.jit, static_argnums=(0, 1))
def draw_groups(
    model,
    size: int,
    params,
    codebook,
    cond,
    key,
    filters,
    guidance,
    first_index,
    codes,
    keep,
    order,
    starts,
):
    """Returns codes int32 `[B, H, W, D]`.

    Args:
      model, params, codebook, cond, key, filters, guidance, first_index, codes, keep:
        see `rq.sampling.program.sample`; the model is unrolled, and with guidance
        `cond` has both conditions.
      size: G, a bound of the sizes of the groups.
      order: int32 `[T]` or `[B, T]`.
      starts: int32 `[S + 1]`, see `rq.sampling.order.group_starts`.
    """
    batch, depth, positions = len(codes), codes.shape[-1], model.positions
    copies = copies_of(guidance)
    keys = sample_keys(key, first_index, batch)
    order = jnp.broadcast_to(order, (batch, positions))
    keep = jnp.broadcast_to(keep, codes.shape)

    def apply(method, *args):
        return model.apply({"params": params}, *args, method=method)

    def tiled(x):
        return jnp.tile(x, (copies, *[1] * (x.ndim - 1)))

    start, empty = apply(decoding.start, cond, batch * copies, None, size, codebook)

    def with_known():
        known = tiled(codes.reshape(batch, positions, depth))
        return apply(decoding.start_from, known, cond, codebook, tiled(order), size)

    # Where nothing is kept there is nothing to read.
    caches = jax.lax.cond(starts[0] > 0, with_known, lambda: empty)
    hints = apply("source_hints", cond, batch * copies, codebook)

    def with_hints(x, places):
        return x if hints is None else x + at_positions(hints, tiled(places))

    # From here on in the order, with padding after the end.
    def padded(x):
        widths = [(0, 0), (0, size), *[(0, 0)] * (x.ndim - 2)]
        return jnp.pad(x, widths)

    given, kept = (
        padded(in_order(x, order).reshape(batch, positions, depth))
        for x in (codes, keep)
    )
    places = padded(order)

    def some(x, first, number):
        return jax.lax.dynamic_slice_in_dim(x, first, number, axis=1)

    def one_group(carry, group):
        drawn, caches = carry
        before, first = group
        # The chain: what was drawn last but was not read yet, except for the last.
        chain = apply(
            decoding.next_input,
            tiled(some(drawn, before, size - 1)),
            tiled(some(places, before, size - 1)),
            codebook,
            tiled(some(places, before + 1, size - 1)),
        )
        chain = with_hints(chain, some(places, before + 1, size - 1))
        asked = some(places, first, size)
        last = jnp.maximum(first - 1, 0)
        context = apply(
            decoding.next_input,
            tiled(some(drawn, last, 1)[:, 0]),
            tiled(some(places, last, 1)[:, 0]),
            codebook,
        )
        context = jnp.where(first == 0, start, context)
        queries = with_hints(apply(decoding.queries, context, tiled(asked)), asked)
        contexts, caches = apply(
            decoding.group_step, chain, queries, caches, before, first
        )

        def rows(x):  # of samples, then of the positions of each
            return x.reshape(-1, *x.shape[2:])

        fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))
        scale = None
        if guidance is not None:
            numbers = jnp.minimum(first + jnp.arange(size), positions - 1)
            scale = jnp.tile(guidance[numbers], (batch, 1)).T[..., None]
        choose = make_choice(
            model.sizes,
            filters,
            scale,
            rows(fold(keys, asked)),
            rows(some(given, first, size)),
            rows(some(kept, first, size)),
        )
        chosen, _ = apply(decoding.depth_codes, rows(contexts), codebook, choose, depth)
        chosen = chosen[: batch * size].reshape(batch, size, depth)
        # What follows the group is drawn again by the next.
        drawn = jax.lax.dynamic_update_slice_in_dim(drawn, chosen, first, axis=1)
        return (drawn, caches), None

    groups = (jnp.concatenate([starts[:1], starts[:-2]]), starts[:-1])
    (drawn, _), _ = jax.lax.scan(one_group, (given, caches), groups)
    drawn = drawn[:, :positions].reshape(codes.shape)
    return in_order(drawn, jnp.argsort(order, axis=1))
