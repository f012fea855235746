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
from rq.sampling.choice import Request, copies_of, make_choice
from rq.sampling.order import in_order


def codes_of_group(model, request: Request, contexts, asked, first, given, kept):
    """Returns codes int32 `[B, G, D]` of several positions, each drawn by itself.

    Args:
      model, request: see `draw_groups`.
      contexts: the body's outputs `[B, G, M]`, or `[2 B, G, M]` with guidance.
      asked: the positions, int32 `[B, G]`.
      first: number of the first of them, which guidance may depend on.
      given: codes `[B, G, D]`, chosen where `kept` `[B, G, D]`.
    """
    batch, size, depth = given.shape
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))
    scale = None
    if request.guidance is not None:
        numbers = jnp.minimum(first + jnp.arange(size), model.positions - 1)
        scale = jnp.tile(request.guidance[numbers], (batch, 1)).T[..., None]

    def rows(x):  # of samples, then of the positions of each
        return x.reshape(-1, *x.shape[2:])

    choose = make_choice(
        model.sizes,
        request.filters,
        scale,
        rows(fold(request.keys, asked)),
        rows(given),
        rows(kept),
    )
    chosen, _ = model.apply(
        {"params": request.params},
        rows(contexts),
        request.codebook,
        choose,
        depth,
        method=decoding.depth_codes,
    )
    return chosen[: batch * size].reshape(batch, size, depth)


@functools.partial(jax.jit, static_argnums=(0, 1))
def draw_groups(model, size: int, request: Request, order, starts):
    """Returns codes int32 `[B, H, W, D]`.

    Args:
      model: the unrolled model.
      size: G, a bound of the sizes of the groups.
      request: what is drawn.
      order: int32 `[T]` or `[B, T]`.
      starts: int32 `[S + 1]`, see `rq.sampling.order.group_starts`.
    """
    codes, cond, codebook = request.codes, request.cond, request.codebook
    batch, depth, positions = len(codes), codes.shape[-1], model.positions
    copies = copies_of(request.guidance)
    order = jnp.broadcast_to(order, (batch, positions))

    def apply(method, *args):
        return model.apply({"params": request.params}, *args, method=method)

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
        for x in (codes, request.kept)
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
        old, fixed = some(given, first, size), some(kept, first, size)
        chosen = codes_of_group(model, request, contexts, asked, first, old, fixed)
        # What follows the group is drawn again by the next.
        drawn = jax.lax.dynamic_update_slice_in_dim(drawn, chosen, first, axis=1)
        return (drawn, caches), None

    groups = (jnp.concatenate([starts[:1], starts[:-2]]), starts[:-1])
    (drawn, _), _ = jax.lax.scan(one_group, (given, caches), groups)
    drawn = drawn[:, :positions].reshape(codes.shape)
    return in_order(drawn, jnp.argsort(order, axis=1))
