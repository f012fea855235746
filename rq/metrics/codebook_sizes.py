# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Chooses the number of codes at each depth from the entropy of the codes in use."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def equal_bits(entropy_bits: Sequence[float], bits: float) -> tuple[int, ...]:
    """Returns sizes, powers of 2, whose bits together are those given.

    Every depth gets its entropy, and the same more, or less: where codes are used
    unevenly there are fewer. Bits are rounded to whole ones so that the sum stays.

    Args:
      entropy_bits: of the codes at each depth, D.
      bits: of a position, as the sum over depth of log2 of the sizes; rounded down.

    Raises:
      ValueError: if there is less than a bit for each depth.
    """
    entropy, bits = np.asarray(entropy_bits, np.float64), math.floor(bits + 1e-6)
    if bits < len(entropy):
        raise ValueError(f"{bits} bits for {len(entropy)} depths")
    low, high = -entropy.max() - bits, float(bits)
    for _ in range(100):  # the shift at which the sum is right, none below one bit
        middle = (low + high) / 2
        too_many = np.maximum(entropy + middle, 1.0).sum() > bits
        low, high = (low, middle) if too_many else (middle, high)
    ideal = np.maximum(entropy + low, 1.0)
    whole = np.floor(ideal + 1e-6).astype(int)
    rest = np.argsort(whole - ideal, kind="stable")[: bits - whole.sum()]
    whole[rest] += 1
    return tuple(2 ** int(b) for b in whole)


def fewest(entropy_bits: Sequence[float]) -> tuple[int, ...]:
    """Returns the smallest powers of 2, 2 or more, of at least the perplexity."""
    return tuple(2 ** max(math.ceil(entropy - 1e-6), 1) for entropy in entropy_bits)
