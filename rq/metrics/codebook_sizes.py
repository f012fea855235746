# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Chooses the number of codes at each depth from the entropy of the codes in use."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

MOST_BITS = 16  # of a code: stored codes are uint16


def equal_bits(
    entropy_bits: Sequence[float], bits: float, most: int = MOST_BITS
) -> tuple[int, ...]:
    """Returns sizes, powers of 2, whose bits together are those given.

    Every depth gets its entropy, and the same more, or less, within 1 and `most`:
    where codes are used unevenly there are fewer. Bits are rounded to whole ones so
    that the sum stays.

    Args:
      entropy_bits: of the codes at each depth, D.
      bits: of a position, as the sum over depth of log2 of the sizes; rounded down.
      most: bits that a code may have.

    Raises:
      ValueError: if there is less than a bit for each depth, or more than `most`.
    """
    entropy, bits = np.asarray(entropy_bits, np.float64), math.floor(bits + 1e-6)
    if not len(entropy) <= bits <= most * len(entropy):
        raise ValueError(f"{bits} bits for {len(entropy)} depths")

    def shifted(by):
        return np.clip(entropy + by, 1.0, most)

    low, high = -entropy.max() - bits, float(bits) + most
    for _ in range(100):  # the shift at which the sum is right
        middle = (low + high) / 2
        too_many = shifted(middle).sum() > bits
        low, high = (low, middle) if too_many else (middle, high)
    ideal = shifted(low)
    whole = np.floor(ideal + 1e-6).astype(int)
    rest = np.argsort(whole - ideal, kind="stable")[: bits - whole.sum()]
    whole[rest] += 1
    return tuple(2 ** int(b) for b in whole)


def fewest(entropy_bits: Sequence[float]) -> tuple[int, ...]:
    """Returns the smallest powers of 2, 2 or more, of at least the perplexity."""
    return tuple(2 ** max(math.ceil(entropy - 1e-6), 1) for entropy in entropy_bits)
