# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Bytes of image files to pixels, and what kind of image they are.

Pixels become uint8 by the type that the file stores them in:

* 8 bits: as they are. 16 bits without sign: divided by 256.
* Other integers: as they are where all lie in 0..255, else as 16 bits where all lie in
  0..65535.
* Floating point: times 255 where all lie in [0, 1]; as they are where all lie in
  [0, 255] and the largest is at least 16.

Anything else is an error, never a black or white image; so is, to `examine`, an image
of 16 bits that would become nearly black because it uses the lowest 12 at most.
"""

from __future__ import annotations

import functools
import io
import warnings

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from rq.data.damage import DecodeError, check_end, check_intact
from rq.data.walk import MAGIC_BYTES, image_format

cv2.setNumThreads(0)  # threads read ahead already, an image each
cv2.utils.logging.setLogLevel(0)  # what it says of damaged files is in our own errors
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # see MAX_PIXELS

MAX_PIXELS = 1 << 27  # of an image: 400 MB decoded
# What Pillow may open: no formats for which it runs other programs.
FORMATS = (
    "AVIF BMP DDS DIB GIF ICNS ICO JPEG JPEG2000 MPO PCX PNG PPM PSD QOI SGI TGA TIFF "
    "WEBP"
).split()
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
_EIGHT_BIT = ("JPEG", "GIF", "WebP", "BMP")  # formats
_SIXTEEN_BIT = 1 << 16
_DARK = 1 << 12  # values below which an image of 16 bits is nearly black
_TOLERANCE = 1e-3  # of floats about [0, 1]


def decode(encoded: bytes, channels: int) -> np.ndarray:
    """PNG, JPEG and what else OpenCV or Pillow read, to uint8 `[H, W, channels]`.

    Turned upright where the file says how. Transparency is dropped, and what colour
    lies below it shows; CMYK, palettes and other types of pixels are converted; of an
    animation it is the first image.

    Raises:
      DecodeError: on bytes that are no image, on more than `MAX_PIXELS`, on pixels out
        of range, and on a JPEG that was cut short, of which the libraries would return
        half.
    """
    check_end(encoded)
    _check_pixels(encoded)
    if image_format(encoded[:MAGIC_BYTES]) not in (*_EIGHT_BIT, "PNG"):
        stored = _imdecode(encoded, cv2.IMREAD_UNCHANGED)
        if stored is not None and stored.dtype != np.uint8:
            return _with_channels(_to_uint8(stored), channels)
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    image = _imdecode(encoded, flag)
    if image is None:  # CMYK JPEG, some GIF: Pillow reads more
        opened = _opened(encoded)
        if opened.mode.startswith(("I", "F")):
            return _with_channels(_to_uint8(np.asarray(opened)), channels)
        image = np.asarray(opened.convert("L" if channels == 1 else "RGB"))
    return image if image.ndim == 3 else image[..., None]


def _imdecode(encoded: bytes, flag: int) -> np.ndarray | None:
    if not encoded:
        return None
    try:
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), flag)
    except cv2.error:
        return None


def _with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Grey, BGR or BGRA of any shape that OpenCV returns, to `[H, W, channels]`."""
    if image.ndim == 2 or image.shape[2] == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), channels, axis=2)
    if image.shape[2] not in (3, 4):
        raise DecodeError(f"{image.shape[2]} channels; 1, 3 or 4 can be read")
    image = np.ascontiguousarray(image[..., :3])
    if channels == 1:
        return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[..., None]
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _to_uint8(image: np.ndarray) -> np.ndarray:
    """Scales integers and floats to uint8 by the rule of this module.

    Raises:
      DecodeError: where they are out of range.
    """
    if not image.size:
        raise DecodeError("an image without pixels")
    low, high = image.min(), image.max()
    if image.dtype == np.uint16:
        return (image >> 8).astype(np.uint8)
    if np.issubdtype(image.dtype, np.integer):
        if low >= 0 and high <= 255:
            return image.astype(np.uint8)
        if low >= 0 and high < _SIXTEEN_BIT:
            _check_not_dark(high)
            return (image >> 8).astype(np.uint8)
        raise DecodeError(
            f"pixels out of range: {image.dtype} from {low} to {high}; scale them to "
            "0..65535 or 0..255"
        )
    if -_TOLERANCE <= low and high <= 1 + _TOLERANCE:
        return np.rint(image.clip(0, 1) * 255).astype(np.uint8)
    if low >= 0 and 16 <= high <= 255:
        return np.rint(image).astype(np.uint8)
    raise DecodeError(  # NaN comes here, too
        f"pixels out of range: {image.dtype} from {low:g} to {high:g}; scale them to "
        "[0, 1] or [0, 255]"
    )


def _check_not_dark(high: int) -> None:
    if 0 < high < _DARK:
        raise DecodeError(
            f"nearly black as 16 bits: values up to {high} of 65535; scale them up"
        )


@functools.cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _header(encoded: bytes) -> Image.Image:
    """An image of Pillow's, of which no more than the header is read yet."""
    return Image.open(io.BytesIO(encoded), formats=_formats())


def _check_pixels(encoded: bytes) -> None:
    """Refuses, from its header, an image that decoding would fill the memory with.

    Raises:
      DecodeError: on more than `MAX_PIXELS`.
    """
    try:
        header = _header(encoded)
        pixels = header.width * header.height
    except Image.DecompressionBombError:
        pixels = 2 * MAX_PIXELS
    except Exception:  # whatever else is wrong with it shows when it is decoded
        return
    if pixels > MAX_PIXELS:
        raise DecodeError(
            f"too many pixels: more than {MAX_PIXELS:,} may fill the memory; resize it"
        )


def _opened(encoded: bytes) -> Image.Image:
    """A whole image, upright, by Pillow, which refuses one that was cut short."""
    try:
        image = _header(encoded)
        image.load()
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise DecodeError(_unknown(encoded)) from error
    except Exception as error:  # on damaged bytes its readers raise all sorts
        raise _decode_error(error) from error


def _unknown(encoded: bytes) -> str:
    """Why bytes that Pillow does not know are no image."""
    if not encoded:
        return "an empty file"
    known = image_format(encoded[:MAGIC_BYTES])
    if known is None:
        return "no image of a known format"
    return f"{known}, damaged or of a kind not decoded here: convert it to PNG or JPEG"


def examine(encoded: bytes) -> tuple[tuple[int, int], str | None]:
    """Decodes an image strictly.

    Returns:
      its (height, width), and the kind that is converted where it is not plain RGB.

    Raises:
      DecodeError: where `decode` would; where Pillow or libjpeg find damage; and where
        an image of 16 bits would become nearly black.
    """
    check_end(encoded)
    _check_pixels(encoded)
    kind = _pillow_kind(encoded)
    check_intact(encoded)
    if image_format(encoded[:MAGIC_BYTES]) not in _EIGHT_BIT:
        stored = _imdecode(encoded, cv2.IMREAD_UNCHANGED)
        if stored is not None and stored.dtype == np.uint16:
            _check_not_dark(stored.max())
            kind = "16 bit"
        elif stored is not None and stored.dtype != np.uint8:
            floats = np.issubdtype(stored.dtype, np.floating)
            kind = "floating point" if floats else f"integers of {stored.dtype}"
    height, width, _ = decode(encoded, 3).shape
    return (height, width), kind


def _pillow_kind(encoded: bytes) -> str | None:
    """The kind of an image by Pillow, which decodes it; None for RGB.

    Raises:
      DecodeError: where Pillow finds damage, or neither it nor OpenCV can decode it.
    """
    try:
        header = _header(encoded)
        animated = getattr(header, "is_animated", False)
        mode = header.mode.split(";")[0]
    except UnidentifiedImageError as error:
        if encoded and _imdecode(encoded, cv2.IMREAD_UNCHANGED) is not None:
            return None
        raise DecodeError(_unknown(encoded)) from error
    except MemoryError:
        raise
    except Exception as error:  # as in `_opened`
        raise _decode_error(error) from error
    _opened(encoded)
    if animated:
        return "animated"
    return None if mode == "RGB" else KINDS.get(mode, mode)


def _decode_error(error: Exception) -> DecodeError:
    return DecodeError(" ".join(str(error).split()) or type(error).__name__)
