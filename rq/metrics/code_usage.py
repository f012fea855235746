# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measures how well the codebooks are used at each depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def histogram(codes, num_codes: int | Sequence[int]) -> list[np.ndarray]:
    """Returns a histogram of the codes at each depth.

    Args:
      codes: integers `[..., D]`.
      num_codes: size of the codebook, one for all depths or one for each depth.

    Returns:
      D arrays int64 `[K_d]`.

    Raises:
      ValueError: if codes are outside their codebook, or the number of depths differs.
    """
    codes = np.asarray(codes)
    depth = codes.shape[-1]
    sizes = np.atleast_1d(num_codes).tolist()
    if len(sizes) == 1:
        sizes = sizes * depth
    if len(sizes) != depth:
        raise ValueError(f"codes of {depth} depths, but {len(sizes)} codebook sizes")
    counts = []
    for d, size in enumerate(sizes):
        flat = codes[..., d].reshape(-1)
        if flat.size and not 0 <= flat.min() <= flat.max() < size:
            raise ValueError(
                f"codes {flat.min()}..{flat.max()} at depth {d + 1} are outside the "
                f"codebook 0..{size - 1}"
            )
        counts.append(np.bincount(flat, minlength=size))
    return counts


def statistics(counts: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the usage of each depth's codebook.

    Args:
      counts: D arrays `[K_d]`, as from `histogram`.

    Returns:
      Arrays `[D]`: 'used', int64, number of codes that occur; 'usage', the same as a
      fraction of the codebook; 'entropy_bits', entropy of the codes' distribution;
      'perplexity', 2 to the entropy.

    Raises:
      ValueError: if a histogram is empty.
    """
    used, usage, entropies = [], [], []
    for d, count in enumerate(counts):
        count = np.asarray(count)
        total = count.sum()
        if not total:
            raise ValueError(f"no codes at depth {d + 1}")
        p = count[count > 0] / total
        used.append(len(p))
        usage.append(len(p) / len(count))
        # The maximum avoids -0.0 if there is only one code.
        entropies.append(max(0.0, -np.sum(p * np.log2(p))))
    entropy = np.asarray(entropies)
    return {
        "used": np.asarray(used),
        "usage": np.asarray(usage),
        "entropy_bits": entropy,
        "perplexity": 2.0**entropy,
    }


def usage(codes, num_codes: int | Sequence[int]) -> dict[str, np.ndarray]:
    """Returns the `statistics` of codes `[..., D]`; `num_codes` as in `histogram`."""
    return statistics(histogram(codes, num_codes))
