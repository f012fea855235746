# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Bytes of image files to pixels, and what kind of image they are."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

cv2.setNumThreads(0)  # threads read ahead already, an image each

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
# Of Pillow's modes, what they are called in reports.
KINDS = {
    "1": "black and white",
    "L": "grey",
    "LA": "grey with alpha",
    "P": "palette",
    "PA": "palette with alpha",
    "RGBA": "alpha",
    "CMYK": "CMYK",
    "YCCK": "CMYK",
    "I": "16 bit",
    "F": "floating point",
}


class DecodeError(ValueError):
    """Bytes that are no image, or a damaged one."""


def decode(encoded: bytes, channels: int) -> np.ndarray:
    """PNG, JPEG and what else OpenCV or Pillow read, to uint8 `[H, W, channels]`.

    Turned upright where the file says how. Transparency is dropped; CMYK, palettes and
    16 bits are converted; of an animation it is the first image.

    Raises:
      DecodeError: on bytes that are no image, and on a JPEG that was cut short, of
        which the libraries would return half.
    """
    if encoded.startswith(JPEG_START) and not encoded.endswith(JPEG_END):
        if encoded.find(JPEG_END, len(encoded) // 2) < 0:
            raise DecodeError("a JPEG without its end")
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flag)
    except cv2.error:
        image = None
    if image is None:  # CMYK JPEG, some GIF: Pillow reads more
        mode = "L" if channels == 1 else "RGB"
        image = np.asarray(_opened(encoded).convert(mode))
    return image if image.ndim == 3 else image[..., None]


def _opened(encoded: bytes) -> Image.Image:
    """A whole image, upright, by Pillow, which refuses one that was cut short."""
    try:
        image = Image.open(io.BytesIO(encoded))
        image.load()
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception as error:  # on damaged bytes its readers raise all sorts
        raise _decode_error(error) from error


def examine(encoded: bytes) -> tuple[tuple[int, int], str | None]:
    """Decodes an image strictly.

    Returns:
      its (height, width), and the kind that is converted where it is not plain RGB.

    Raises:
      DecodeError: where `decode` would, and where Pillow finds damage.
    """
    try:
        header = Image.open(io.BytesIO(encoded))
        animated = getattr(header, "is_animated", False)
        mode = header.mode.split(";")[0]
    except Exception as error:  # as above
        raise _decode_error(error) from error
    kind = KINDS.get(mode, None if mode == "RGB" else mode)
    _opened(encoded)
    height, width, _ = decode(encoded, 3).shape
    return (height, width), "animated" if animated else kind


def _decode_error(error: Exception) -> DecodeError:
    if isinstance(error, UnidentifiedImageError):  # its message names an object
        return DecodeError("no image of a known format")
    return DecodeError(str(error) or type(error).__name__)
