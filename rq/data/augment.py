# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Resizes, crops and flips images for training and evaluation.

A transform is a pure function of an image (uint8 `[H, W, C]`), the size to return (the
side of a square, or a height and a width), and a NumPy generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from rq.config import height_and_width, size_text
from rq.data import DataError

Transform = Callable[..., np.ndarray]

MAX_ASPECT = 8  # what is longer than so many times its crop is cut before resizing


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes an image: area averages to shrink (close to Pillow's), else bilinear."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height < image.shape[0] or width < image.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(image, (width, height), interpolation=how)
    return resized.reshape(height, width, image.shape[-1])


def _covering_crop(image, size, place):
    """Resizes an image until it just covers the size, and crops what is beyond.

    Of a square that is: the short side is resized, the long one is cropped.

    Args:
      image: uint8 `[H, W, C]`.
      size: see the module.
      place: maps the number of surplus rows, or columns, to the first one kept.
    """
    rows, columns = size = height_and_width(size)
    given = image.shape[:2]
    # The side that limits: it is resized exactly.
    target, source = max(zip(size, given, strict=True), key=lambda x: x[0] / x[1])
    scale = target / source
    height, width = (
        max(wanted, round(n * scale)) for wanted, n in zip(size, given, strict=True)
    )
    top, left = place(height - rows), place(width - columns)
    # Cut where pixels before and after resizing align, so that nothing is shifted.
    step = source // math.gcd(source, target)
    image, top, height = _strip(image, 0, top, rows, scale, height, step)
    image, left, width = _strip(image, 1, left, columns, scale, width, step)
    return _crop(resize(image, height, width), top, left, rows, columns)


def _strip(image, axis, start, side, scale, length, step):
    """Cuts an image along one axis, if it is long, to what the crop is resized from.

    Args:
      image: uint8 `[H, W, C]`.
      axis: 0 or 1.
      start, side: the crop's first pixel and length, after resizing.
      scale, length: of resizing, and the axis' length after it.
      step: cuts are at multiples of it.

    Returns:
      The image, and the `start` and `length` to use after it is resized by `scale`.
    """
    if length <= MAX_ASPECT * side:
        return image, start, length
    first = max(int(start / scale) - 1, 0) // step * step
    last = math.ceil((start + side) / scale) + 1  # interpolation needs a neighbour
    last = min(-(-last // step) * step, image.shape[axis])
    image = image[first:last] if axis == 0 else image[:, first:last]
    length = max(side, round((last - first) * scale))
    return image, min(max(start - round(first * scale), 0), length - side), length


def _flip(image, rng):
    # OpenCV copies; a view with negative strides is much slower to put into a batch.
    flipped = rng.random() < 0.5
    return cv2.flip(image, 1).reshape(image.shape) if flipped else image


def _crop(image, top, left, height, width):
    return image[top : top + height, left : left + width]


def _random_crop(image, height, width, rng):
    top = rng.integers(image.shape[0] - height + 1)
    left = rng.integers(image.shape[1] - width + 1)
    return _crop(image, top, left, height, width)


def check_size(image, size, rng):
    """Returns the image unchanged.

    Raises:
      DataError: if it is not of that size.
    """
    del rng
    if image.shape[:2] != height_and_width(size):
        raise DataError(
            "data.augment='none' and 'flip' need images of "
            f"data.resolution={size}, but one is {size_text(image.shape[:2])}: "
            "set data.augment='center' or 'crop_flip' to resize and crop"
        )
    return image


def flip(image, size, rng):
    """Flips the image with probability 0.5 (CIFAR-10, CelebA-HQ).

    Raises:
      DataError: if it is not of that size.
    """
    return _flip(check_size(image, size, rng), rng)


def center(image, size, rng):
    """Resizes the short side and crops the centre (LSUN)."""
    del rng
    return _covering_crop(image, size, lambda room: room // 2)


def center_part(given: tuple[int, int], size) -> tuple[slice, slice]:
    """Returns the rows and columns of an image `[H, W]` that `center` keeps.

    Args:
      given: (H, W).
      size: see the module.
    """
    scale = max(side / n for side, n in zip(height_and_width(size), given, strict=True))
    part = []
    for side, n in zip(height_and_width(size), given, strict=True):
        start = (n - side / scale) / 2
        part.append(slice(round(start), round(n - start)))
    return part[0], part[1]


def crop_flip(image, size, rng):
    """Resizes the short side, crops at random, flips half the time (ImageNet)."""
    cropped = _covering_crop(image, size, lambda room: rng.integers(room + 1))
    return _flip(cropped, rng)


def resized_crop_flip(image, size, rng):
    """Crops 75 to 100% of the area at random, resizes and flips it (FFHQ).

    The crop has the ratio of the size, and is as large as fits into the image, at most.
    It is flipped with probability 0.5.
    """
    (height, width), (rows, columns) = image.shape[:2], height_and_width(size)
    area, ratio = rng.uniform(0.75, 1.0) * height * width, columns / rows
    tall = min((area / ratio) ** 0.5, height, width / ratio)
    wide = min((area * ratio) ** 0.5, width, height * ratio)
    tall, wide = (max(round(length), 1) for length in (tall, wide))
    return _flip(resize(_random_crop(image, tall, wide, rng), rows, columns), rng)


def dalle(image, size, rng):
    """Crops near the centre, resizes to 1 to 9/8 of the size, crops again.

    The augmentation of DALL-E (Ramesh et al. 2021) for images with captions. It never
    flips, since captions say left and right. The first crop is the largest one with the
    ratio of the size.
    """
    (height, width), (rows, columns) = image.shape[:2], height_and_width(size)
    tall = min(height, max(round(width * rows / columns), 1))
    wide = min(width, max(round(height * columns / rows), 1))

    def near_the_middle(room):  # within the middle quarter of the possible places
        low, high = 3 * room // 8, 5 * room // 8
        return rng.integers(low, max(low + 1, high))

    top, left = near_the_middle(height - tall), near_the_middle(width - wide)
    cropped = _crop(image, top, left, tall, wide)
    largest = max(rows, min(tall, round(9 / 8 * rows)))
    tall = int(rng.integers(rows, largest + 1))
    wide = max(columns, round(tall * columns / rows))
    return _random_crop(resize(cropped, tall, wide), rows, columns, rng)


AUGMENTATIONS: dict[str, Transform] = {
    "none": check_size,
    "flip": flip,
    "center": center,
    "crop_flip": crop_flip,
    "resized_crop_flip": resized_crop_flip,
    "dalle": dalle,
}


def transforms(data) -> tuple[Transform, Transform]:
    """Returns the transforms for training and for evaluation (deterministic)."""
    augment = AUGMENTATIONS[data.augment]
    return augment, check_size if data.augment in ("none", "flip") else center
