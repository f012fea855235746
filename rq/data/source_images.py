# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Source images, which stage 2 is conditioned on (`data.source`).

Those of 'pairs' are part of the data set. Others are made of the image that the model
sees, after augmentation:

    grey       without colours
    lowres:N   at 1/N of the resolution, enlarged again
    edges      white on black
    mask       a rectangle is grey
"""

from __future__ import annotations

import cv2
import numpy as np

from rq.config import image_shape
from rq.data.augment import Transform, resize
from rq.data.pixels import colours, nearest_labels

MASKED = 127  # grey of the pixels that are missing


def transformed(
    example: dict, transform: Transform, data, rng: np.random.Generator, paired: bool
) -> dict:
    """Returns an example with its image, and any source image, as the models take them.

    Both images of a pair are cropped and flipped in the same way.

    Args:
      example: 'image' uint8 `[H, W, C]` and, of pairs, 'source'; a source of another
        size is resized to that of the image first.
      transform: see `rq.data.augment`.
      data: the `data` section of the config; images of a `palette` are label maps, each
        pixel of which becomes the class that most of it has.
      rng: generator of the example.
      paired: whether the source image is wanted.
    """
    before = rng.bit_generator.state
    palette = [name for name in data.palette if name]
    image = example["image"]
    if palette:
        known = colours(palette, data.channels)
        image = _label_map(image, transform, data.resolution, rng, known)
    else:
        image = transform(image, data.resolution, rng)
    found = example | {"image": image}
    if not paired or data.source == "none":
        return found
    if data.source != "pairs":
        return found | {"source": make(data, image, rng)}
    rng.bit_generator.state = before
    source = resize(example["source"], *example["image"].shape[:2])
    return found | {"source": transform(source, data.resolution, rng)}


def _label_map(image, transform, size, rng, palette) -> np.ndarray:
    """Returns a transformed label map, in the colours of the palette alone."""
    labels = nearest_labels(image, palette)
    classes = (labels[..., None] == np.arange(len(palette))) * np.uint8(255)
    return palette[transform(classes, size, rng).argmax(axis=-1)]


def given_size(data) -> tuple[int, int]:
    """Returns height and width of the images that users give, for `make`."""
    height, width, _ = image_shape(data)
    if data.source.startswith("lowres:"):
        factor = int(data.source.removeprefix("lowres:"))
        return height // factor, width // factor
    return height, width


def make(
    data,
    image: np.ndarray,
    rng: np.random.Generator | None = None,
    missing: np.ndarray | None = None,
) -> np.ndarray:
    """Returns the source image of an image, uint8 `[H, W, C]`.

    Args:
      data: the `data` section of the config; of 'pairs' the image is the source.
      image: uint8 `[H, W, C]`, as the model sees it, or smaller, see `given_size`.
      rng: draws the rectangle of 'mask'.
      missing: bool `[H, W]`, what is missing instead.
    """
    kind, (height, width, channels) = data.source, image_shape(data)
    if kind == "pairs":
        return image
    if kind.startswith("lowres:"):
        return resize(resize(image, *given_size(data)), height, width)
    if kind == "mask":
        missing = _rectangle(height, width, rng) if missing is None else missing
        return np.where(missing[..., None], np.uint8(MASKED), image)
    grey = image
    if channels == 3:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    if kind == "edges":
        grey = cv2.Canny(np.ascontiguousarray(grey), 100, 200)[..., None]
    return np.repeat(grey, channels, axis=-1)


def _rectangle(height: int, width: int, rng) -> np.ndarray:
    """Returns a rectangle with sides of a quarter to three quarters of the image's."""
    found = np.zeros((height, width), bool)
    part = []
    for side in (height, width):
        length = rng.integers(side // 4, 3 * side // 4 + 1)
        start = rng.integers(side - length + 1)
        part.append(slice(start, start + length))
    found[tuple(part)] = True
    return found
