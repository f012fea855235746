# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pixels as they are stored and as models see them."""

from __future__ import annotations

import numpy as np


def to_float(images):
    """uint8 0..255 to float32 in [-1, 1]; floats, already in [-1, 1], pass unchanged.

    Takes NumPy and JAX arrays alike: batches travel to the devices as uint8, a quarter
    of the bytes, and become floats within compiled functions.
    """
    if images.dtype == np.uint8:
        return images.astype(np.float32) / 127.5 - 1
    return images


def to_uint8(images):
    """Floats, clipped to [-1, 1], to the nearest of uint8 0..255; `to_float` undoes it.

    Takes NumPy and JAX arrays alike.
    """
    return ((images.clip(-1.0, 1.0) + 1.0) * 127.5).round().astype(np.uint8)
