# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""How well the codebooks are used, depth by depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def histogram(codes, num_codes: int | Sequence[int]) -> list[np.ndarray]:
    """How often each code occurs, a histogram for each depth.

    Args:
      codes: integers `[..., D]`.
      num_codes: size of the codebook, one or one for each depth.

    Returns:
      D arrays int64 `[K_d]`.

    Raises:
      ValueError: on codes that a codebook does not have, or another number of depths.
    """
    codes = np.asarray(codes)
    depth = codes.shape[-1]
    sizes = np.atleast_1d(num_codes).tolist()
    if len(sizes) == 1:
        sizes = sizes * depth
    if len(sizes) != depth:
        raise ValueError(f"codes of {depth} depths, codebook sizes of {len(sizes)}")
    counts = []
    for d, size in enumerate(sizes):
        flat = codes[..., d].reshape(-1)
        if flat.size and not 0 <= flat.min() <= flat.max() < size:
            raise ValueError(
                f"codes {flat.min()}..{flat.max()} at depth {d + 1}, "
                f"whose codebook has 0..{size - 1}"
            )
        counts.append(np.bincount(flat, minlength=size))
    return counts


def statistics(counts: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Usage of each depth's codebook from its histogram.

    Args:
      counts: D arrays `[K_d]`, as from `histogram`.

    Returns:
      Arrays `[D]`: 'used', int64, codes that occur at all; 'usage', the same as a share
      of the codebook; 'entropy_bits' of the codes' distribution; 'perplexity', 2 to the
      entropy: the number of equally frequent codes that would have it.

    Raises:
      ValueError: where a histogram is empty, so that nothing can be said.
    """
    used, usage, entropies = [], [], []
    for d, count in enumerate(counts):
        count = np.asarray(count)
        total = count.sum()
        if not total:
            raise ValueError(f"no codes at depth {d + 1}")
        share = count[count > 0] / total
        used.append(len(share))
        usage.append(len(share) / len(count))
        # The sum of one sure code is -0.0.
        entropies.append(max(0.0, -np.sum(share * np.log2(share))))
    entropy = np.asarray(entropies)
    return {
        "used": np.asarray(used),
        "usage": np.asarray(usage),
        "entropy_bits": entropy,
        "perplexity": 2.0**entropy,
    }


def usage(codes, num_codes: int | Sequence[int]) -> dict[str, np.ndarray]:
    """`statistics` of codes `[..., D]`; `num_codes` as in `histogram`."""
    return statistics(histogram(codes, num_codes))
