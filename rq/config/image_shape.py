# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The size of images, which `data.resolution` gives as a side or as two."""

from __future__ import annotations

Resolution = int | tuple[int, int]  # side of a square, or (height, width)


def height_and_width(resolution: Resolution) -> tuple[int, int]:
    """Returns (height, width) of images of a resolution."""
    if isinstance(resolution, int):
        return resolution, resolution
    height, width = resolution
    return height, width


def image_shape(data) -> tuple[int, int, int]:
    """Returns (height, width, channels) of the images of a config's `data` section."""
    return *height_and_width(data.resolution), data.channels


def size_text(resolution: Resolution) -> str:
    """Returns a resolution for people: '64 x 96', height first."""
    return " x ".join(map(str, height_and_width(resolution)))
