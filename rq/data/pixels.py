# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Converts pixels between uint8, as stored, and floats in [-1, 1], as in models."""

from __future__ import annotations

import numpy as np


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
