# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Images as users of the library give them: files, Pillow's images and arrays."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from rq.config.image_shape import Resolution
from rq.data import DataError
from rq.data.augment import center
from rq.data.damage import DecodeError, check_intact
from rq.data.decode import decode, from_array, from_pillow

_SHAPES = "[H, W], [H, W, C] or [N, H, W, C] with C = 1, 3 or 4"


def read(images, channels: int, resolution: Resolution) -> np.ndarray:
    """Returns images of any size and kind as the models take them.

    Each is resized until it just covers the resolution, and the centre is cropped.
    Pixels become uint8 by the rules of `rq.data.decode`: floats are in [0, 1] or
    [0, 255].

    Args:
      images: a path, an image of Pillow, an array `[H, W]` or `[H, W, C]`; a list of
        them; or an array `[N, H, W, C]`.
      channels: 1 or 3.
      resolution: side of the squares to return, or their (height, width).

    Returns:
      uint8 `[N, height, width, channels]`; N = 1 for one image.

    Raises:
      DataError: if there is none, or one cannot be read; with its number.
    """
    return np.stack([center(x, resolution, None) for x in pixels(images, channels)])


def pixels(images, channels: int) -> Iterator[np.ndarray]:
    """Yields images as `read` takes them, uint8 `[H, W, channels]` of any size.

    Raises:
      DataError: see `read`.
    """
    if _is_one(images):
        images = [images]
    elif not isinstance(images, list | tuple):
        images = np.asarray(images)
        if images.ndim == 3 and images.shape[-1] in (1, 3, 4) or images.ndim == 2:
            images = images[None]
        elif images.ndim != 4:
            raise DataError(f"images have shape {images.shape}, not {_SHAPES}")
    if not len(images):
        raise DataError("no images were given")
    for number, image in enumerate(images):
        try:
            yield _read_one(image, channels)
        except (DecodeError, OSError) as error:
            name = image if isinstance(image, str | os.PathLike) else f"image {number}"
            raise DataError(f"{name}: {error}") from None


def _is_one(image) -> bool:
    return isinstance(image, str | os.PathLike | Image.Image)


def _read_one(image, channels: int) -> np.ndarray:
    """Returns an image as uint8 `[H, W, channels]`."""
    if isinstance(image, Image.Image):
        return from_pillow(image, channels)
    if not _is_one(image):
        image = np.asarray(image)
        if image.ndim not in (2, 3):
            raise DecodeError(f"shape {image.shape}, not {_SHAPES}")
        return from_array(image, channels)
    path = pathlib.Path(image).expanduser()
    if path.is_dir() or not path.exists():
        what = (
            "a folder, not an image file" if path.is_dir() else "there is no such file"
        )
        raise DecodeError(what)
    encoded = path.read_bytes()
    pixels = decode(encoded, channels)  # first, since it checks the size
    check_intact(encoded)
    return pixels
