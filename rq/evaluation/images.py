# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measures of images, pixels in [-1, 1]."""

from __future__ import annotations

import numpy as np

PEAK_TO_PEAK = 2.0


def psnr(a, b) -> np.ndarray:
    """Peak signal-to-noise ratio of each image, in decibels.

    Args:
      a, b: images `[..., H, W, C]` in [-1, 1]. Values outside are taken as they are.

    Returns:
      float64 `[...]`, infinite where the images are equal.

    Raises:
      ValueError: where the shapes differ or are not those of images.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim < 3:
        raise ValueError(
            f"images [..., H, W, C] of one shape, not {a.shape}, {b.shape}"
        )
    return psnr_of_error(np.mean((a - b) ** 2, axis=(-3, -2, -1)))


def psnr_of_error(error) -> np.ndarray:
    """`psnr` from mean squared errors, of any shape, float64."""
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(PEAK_TO_PEAK**2 / np.asarray(error, np.float64))
