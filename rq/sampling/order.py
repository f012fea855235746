# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""In which order positions are drawn, and how many at once, by models of any order.

What is kept of an image comes first, so that what is drawn sees all of it. The rest is
drawn row by row, or, several positions at once, spread out: those of a group do not see
each other, and are the more independent the farther they are apart.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


def make_order(keep: np.ndarray, spread: bool = False) -> np.ndarray:
    """Returns all positions, int32 `[T]`: first those of which every code is kept.

    Args:
      keep: bool `[H, W, D]`, codes that are not drawn.
      spread: the others are spread out, each as far as possible from all before it;
        otherwise row by row.
    """
    known = np.asarray(keep.all(axis=-1))
    first = np.flatnonzero(known)
    rest = _spread(known) if spread else np.flatnonzero(~known)
    return np.concatenate([first, rest]).astype(np.int32)


def _spread(known: np.ndarray) -> np.ndarray:
    """Returns the unknown positions of `[H, W]`, each the farthest from all before."""
    places = np.argwhere(np.ones_like(known))
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
    left, flat = ~known.ravel(), known.ravel()
    nearest = distances[flat].min(axis=0) if flat.any() else np.full(flat.size, np.inf)
    # Of those equally far, the one that a fixed shuffle has first: no pattern of rows.
    shuffled = np.random.default_rng(0).permutation(flat.size)
    order = []
    while left.any():
        farthest = shuffled[np.argmax(np.where(left, nearest, -1)[shuffled])]
        order.append(farthest)
        left[farthest] = False
        nearest = np.minimum(nearest, distances[farthest])
    return np.asarray(order, int)


def group_starts(positions: int, known: int, steps: int) -> np.ndarray:
    """Returns at which number each group starts, and the end, int32 `[steps + 1]`.

    Groups grow as in MaskGIT (Chang et al. 2022): after step s of S, a fraction
    1 - cos(pi / 2 s / S) has been drawn; at least one position each, while there are
    any.

    Args:
      positions: T.
      known: number of positions that are not drawn, the first in the order.
      steps: S.
    """
    left, ends = positions - known, [0]
    for step in range(1, steps + 1):
        wanted = round(left * (1 - math.cos(math.pi / 2 * step / steps)))
        ends.append(min(left, max(wanted, ends[-1] + 1)))
    ends[-1] = left
    return np.asarray(ends, np.int32) + np.int32(known)


@functools.cache
def largest_group(positions: int, steps: int) -> int:
    """Returns the most positions that a group has, whatever is known."""
    return max(
        int(np.diff(group_starts(positions, known, steps)).max())
        for known in range(positions)
    )


def in_order(x: jax.Array, order: jax.Array) -> jax.Array:
    """Returns arrays `[B, H, W, ...]` with their positions in an order `[B, T]`."""
    flat = x.reshape(*order.shape, *x.shape[3:])
    places = order.reshape(*order.shape, *[1] * (x.ndim - 3))
    return jnp.take_along_axis(flat, places, axis=1).reshape(x.shape)


def closed(order: jax.Array) -> jax.Array:
    """Returns an order `[B, T + 1]`: after the last position it starts again."""
    return jnp.concatenate([order, order[:, :1]], axis=1)
