# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Resizes, crops and flips images for training and evaluation.

A transform is a pure function of an image (uint8 `[H, W, C]`), the side of the square
to return, and a NumPy generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from rq.data import DataError

Transform = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]

MAX_ASPECT = 8  # images with a larger aspect ratio are cropped before resizing


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes an image: area averages to shrink (close to Pillow's), else bilinear."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height < image.shape[0] or width < image.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(image, (width, height), interpolation=how)
    return resized.reshape(height, width, image.shape[-1])


def _short_side_crop(image, side, place):
    """Resizes the short side to `side` and crops a square of that side.

    Args:
      image: uint8 `[H, W, C]`.
      side: side of the square.
      place: maps the number of surplus rows, or columns, to the first one kept.
    """
    scale = side / min(image.shape[:2])
    height, width = (max(side, round(n * scale)) for n in image.shape[:2])
    top, left = place(height - side), place(width - side)
    if max(height, width) > MAX_ASPECT * side:  # resize only what the square needs
        image, top, height = _strip(image, 0, top, side, scale, height)
        image, left, width = _strip(image, 1, left, side, scale, width)
    return _crop(resize(image, height, width), top, left, side, side)


def _strip(image, axis, start, side, scale, length):
    """Cuts an image along one axis to the pixels that the square is resized from.

    Returns:
      The image, and the `start` and `length` to use after it is resized by `scale`.
    """
    if length <= MAX_ASPECT * side:
        return image, start, length
    # Cut where pixels before and after resizing align, so that nothing is shifted.
    short = min(image.shape[:2])
    step = short // math.gcd(short, side)
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


def _random_crop(image, side, rng):
    top = rng.integers(image.shape[0] - side + 1)
    left = rng.integers(image.shape[1] - side + 1)
    return _crop(image, top, left, side, side)


def check_size(image, side, rng):
    """Returns the image unchanged.

    Raises:
      DataError: if it is not `side` x `side`.
    """
    del rng
    if image.shape[:2] != (side, side):
        raise DataError(
            "data.augment='none' and 'flip' need images of "
            f"data.resolution={side}, but one is {image.shape[0]} x {image.shape[1]}: "
            "set data.augment='center' or 'crop_flip' to resize and crop"
        )
    return image


def flip(image, side, rng):
    """Flips the image with probability 0.5 (CIFAR-10, CelebA-HQ).

    Raises:
      DataError: if it is not `side` x `side`.
    """
    return _flip(check_size(image, side, rng), rng)


def center(image, side, rng):
    """Resizes the short side and crops the centre (LSUN)."""
    del rng
    return _short_side_crop(image, side, lambda room: room // 2)


def crop_flip(image, side, rng):
    """Resizes the short side, crops at random, flips half the time (ImageNet)."""
    cropped = _short_side_crop(image, side, lambda room: rng.integers(room + 1))
    return _flip(cropped, rng)


def resized_crop_flip(image, side, rng):
    """Crops a random square of 75 to 100% of the area, resizes and flips it (FFHQ).

    The square is limited by the short side. It is flipped with probability 0.5.
    """
    height, width = image.shape[:2]
    edge = round((rng.uniform(0.75, 1.0) * height * width) ** 0.5)
    edge = min(edge, height, width)
    return _flip(resize(_random_crop(image, edge, rng), side, side), rng)


def dalle(image, side, rng):
    """Crops a square near the centre, resizes it to 1 to 9/8 of `side`, crops again.

    The augmentation of DALL-E (Ramesh et al. 2021) for images with captions. It never
    flips, since captions say left and right.
    """
    height, width = image.shape[:2]
    edge = min(height, width)

    def near_the_middle(room):  # within the middle quarter of the possible places
        low, high = 3 * room // 8, 5 * room // 8
        return rng.integers(low, max(low + 1, high))

    top, left = near_the_middle(height - edge), near_the_middle(width - edge)
    square = _crop(image, top, left, edge, edge)
    largest = max(side, min(edge, round(9 / 8 * side)))
    resized = rng.integers(side, largest + 1)
    return _random_crop(resize(square, resized, resized), side, rng)


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
