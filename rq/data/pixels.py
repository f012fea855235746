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
