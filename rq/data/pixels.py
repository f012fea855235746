# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Converts pixels between uint8, as stored, and floats in [-1, 1], as in models.

And the colours of palettes to pixels, and back.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def colours(palette: Sequence[str], channels: int = 3) -> np.ndarray:
    """Returns the colours '#rrggbb' of a palette, uint8 `[L, channels]`.

    Of one channel these are their luminance, as of images that are read as grey.
    """
    found = np.array(
        [[int(name[i : i + 2], 16) for i in (1, 3, 5)] for name in palette], np.uint8
    )
    if channels == 1:
        grey = np.rint(found @ np.array([0.299, 0.587, 0.114]))
        found = grey[:, None].astype(np.uint8)
    return found


def nearest_labels(images: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Returns the class of each pixel, that of the nearest colour, int32 `[..., H, W]`.

    Args:
      images: uint8 `[..., H, W, C]`.
      palette: uint8 `[L, C]`; of equally near colours the first counts.
    """
    pixels, near = images.astype(np.int32), None
    for label, colour in enumerate(palette.astype(np.int32)):
        distance = ((pixels - colour) ** 2).sum(axis=-1)
        if near is None:
            near, found = distance, np.zeros(distance.shape, np.int32)
        closer = distance < near
        near, found = np.where(closer, distance, near), np.where(closer, label, found)
    if near is None:
        raise ValueError("a palette without colours")
    return found


def to_float(images):
    """Converts uint8 0..255 to float32 in [-1, 1]; returns floats unchanged.

    Takes NumPy or JAX arrays. Batches go to the devices as uint8, a quarter of the
    bytes, and become floats inside compiled functions.
    """
    if images.dtype == np.uint8:
        return images.astype(np.float32) / 127.5 - 1
    return images


def to_uint8(images):
    """Clips floats to [-1, 1] and rounds them to uint8 0..255; inverse of `to_float`.

    Takes NumPy or JAX arrays.
    """
    return ((images.clip(-1.0, 1.0) + 1.0) * 127.5).round().astype(np.uint8)
