# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""A fixed random order of a data set, which splits it."""

from __future__ import annotations

import random


def mixed_order(number: int) -> list[int]:
    """Returns a fixed random permutation of `range(number)`.

    It uses Python's `random()`, which gives the same numbers in every version. NumPy
    does not guarantee that for its permutations.
    """
    generator = random.Random(0)
    keys = [generator.random() for _ in range(number)]
    return sorted(range(number), key=keys.__getitem__)
