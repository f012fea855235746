# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Draws all positions coarsely, then finer, with a body that takes them in any order.

    p(S) = prod_l prod_g p(codes of level l in group g | all codes drawn before)

A level goes from one depth to the next. In each of its steps a group of positions,
spread out, gets the codes between the two depths; the body reads all others as deep as
they are drawn by then, and the head the group's own coarse codes. So the first level
plans the whole picture, and details see all of it. As what was read grows deeper, every
step reads everything anew.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rq.models import decoding
from rq.sampling.choice import Request, copies_of
from rq.sampling.groups import codes_of_group
from rq.sampling.order import group_starts, largest_group, make_order


class Steps(NamedTuple):
    """What each of R steps reads and draws; see `make_steps`.

    Attributes:
      order: int32 `[R, T]`, in which positions are read; then come those of the group.
      depths: int32 `[R, T]`, how many of their codes, in that order.
      first: int32 `[R]`, how many positions are read.
      start: int32 `[R]`, how many positions the level had before; kept ones count.
      number: int32 `[R]`, how many are drawn.
      low, high: int32 `[R]`, codes `low` to `high` - 1 of the group are drawn.
    """

    order: np.ndarray
    depths: np.ndarray
    first: np.ndarray
    start: np.ndarray
    number: np.ndarray
    low: np.ndarray
    high: np.ndarray


def make_steps(keep: np.ndarray, levels: tuple[int, ...], steps: int) -> Steps:
    """Returns the steps of all levels.

    The groups of the first level grow, as those of `rq.sampling.order.group_starts`;
    in later levels, where the whole picture is known, they are equal. No group is
    larger than `group_size(T, steps)`.

    Args:
      keep: bool `[H, W, D]`, codes that are not drawn; D is the last level.
      levels: depths, ascending.
      steps: of each level, one at least.
    """
    positions = keep.shape[0] * keep.shape[1]
    order = make_order(keep, spread=True)
    known = int(keep.all(axis=-1).sum())
    deep = np.where(keep.all(axis=-1).ravel(), levels[-1], 0)  # drawn so far
    rows, low = [], 0
    for high in levels:
        starts = group_starts(positions, known, steps)
        if low:
            parts = np.array_split(order[known:], steps)
            starts = known + np.cumsum([0, *map(len, parts)])
        for start, end in zip(starts[:-1], starts[1:], strict=True):
            group = order[start:end]
            others = np.setdiff1d(order, group, assume_unique=True)
            read, unread = others[deep[others] > 0], others[deep[others] == 0]
            # The coarsest first, as in training.
            read = read[np.argsort(deep[read], kind="stable")]
            whole = np.concatenate([read, group, unread])
            rows.append((whole, deep[whole], len(read), start, len(group), low, high))
            deep[group] = high
        low = high
    return Steps(*(np.asarray(x, np.int32) for x in zip(*rows, strict=True)))


def group_size(positions: int, steps: int) -> int:
    """Returns the most positions of a step."""
    return max(largest_group(positions, steps), -(-positions // steps))


@functools.partial(jax.jit, static_argnums=(0, 1))
def draw_levels(model, size: int, request: Request, steps: Steps):
    """Returns codes int32 `[B, H, W, D]`.

    Args:
      model: the unrolled model.
      size: G, a bound of the sizes of the groups: all are padded to it.
      request: what is drawn.
      steps: what is read and drawn, one after another.
    """
    shape, positions = request.codes.shape, model.positions
    batch, depth = shape[0], shape[-1]
    copies, by_depth = copies_of(request.guidance), jnp.arange(depth)
    codes, keep = (
        x.reshape(batch, positions, depth) for x in (request.codes, request.kept)
    )

    def tiled(x):
        return jnp.tile(x, (copies, *[1] * (x.ndim - 1)))

    def one_step(codes, step):
        order, depths = (
            jnp.broadcast_to(x, (copies * batch, positions))
            for x in (step.order, step.depths)
        )
        places = jnp.pad(step.order, (0, size))
        places = jax.lax.dynamic_slice(places, (step.first,), (size,))
        asked = jnp.broadcast_to(places, (batch, size))
        contexts = model.apply(
            {"params": request.params},
            tiled(codes),
            request.cond,
            request.codebook,
            order,
            depths,
            step.first,
            tiled(asked),
            method=decoding.group_contexts,
        )
        given, fixed = codes[:, places], keep[:, places] | (by_depth < step.low)
        chosen = codes_of_group(
            model, request, contexts, asked, step.start, given, fixed
        )
        chosen = jnp.where(by_depth < step.high, chosen, given)
        # Padding draws what is read or comes later: that stays as it was.
        places = jnp.where(jnp.arange(size) < step.number, places, positions)
        return codes.at[:, places].set(chosen, mode="drop"), None

    codes, _ = jax.lax.scan(one_step, codes, steps)
    return codes.reshape(shape)
