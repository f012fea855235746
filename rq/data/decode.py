# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Decodes image files to uint8 pixels and names the kind of image.

The stored type decides how pixels become uint8:

* 8 bits: unchanged. 16 bits unsigned: divided by 256.
* Other integers: unchanged if all are in 0..255; divided by 256 if all are in 0..65535.
* Floating point: times 255 if all are in [0, 1]; rounded if all are in [0, 255] and the
  largest is at least 16.

Anything else is an error, never a black or white image. `examine` also rejects 16-bit
images that would become nearly black because they use at most the lowest 12 bits.
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

cv2.setNumThreads(0)  # images are already decoded in parallel threads
cv2.utils.logging.setLogLevel(0)  # our own errors report damaged files
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # see MAX_PIXELS

MAX_PIXELS = 1 << 27  # in an image: 400 MB decoded
# Formats that Pillow may open; none for which it runs other programs.
FORMATS = (
    "AVIF BMP DDS DIB GIF ICNS ICO JPEG JPEG2000 MPO PCX PNG PPM PSD QOI SGI TGA TIFF "
    "WEBP"
).split()
# Names of Pillow's modes in reports.
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
_EIGHT_BIT = ("JPEG", "GIF", "WebP", "BMP")  # formats with 8 bits only
_SIXTEEN_BIT = 1 << 16
_DARK = 1 << 12  # a 16-bit image with all values below this is nearly black
_TOLERANCE = 1e-3  # by which floats may exceed [0, 1]


def decode(encoded: bytes, channels: int) -> np.ndarray:
    """Decodes an image that OpenCV or Pillow can read to uint8 `[H, W, channels]`.

    The orientation stored in the file is applied. Transparency is dropped, which shows
    the colour below it. CMYK, palettes and other pixel types are converted. Of an
    animation the first frame is returned.

    Raises:
      DecodeError: if the bytes are no image or a truncated JPEG (the libraries would
        return half of it), have more than `MAX_PIXELS`, or pixels are out of range.
    """
    check_end(encoded)
    _check_pixels(encoded)
    if image_format(encoded[:MAGIC_BYTES]) not in (*_EIGHT_BIT, "PNG"):
        stored = _imdecode(encoded, cv2.IMREAD_UNCHANGED)
        if stored is not None and stored.dtype != np.uint8:
            return _with_channels(_to_uint8(stored), channels)
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    image = _imdecode(encoded, flag)
    if image is None:  # Pillow reads some that OpenCV does not: CMYK JPEG, GIF
        image = _converted(_opened(encoded), channels)
    return image if image.ndim == 3 else image[..., None]


def from_pillow(image: Image.Image, channels: int) -> np.ndarray:
    """Returns an image of Pillow, of any mode, as `decode` returns its file.

    Raises:
      DecodeError: if it is damaged, too large, or pixels are out of range.
    """
    if image.width * image.height > MAX_PIXELS:
        raise _too_many_pixels()
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception as error:  # as in `_opened`
        raise _decode_error(error) from error
    image = _converted(image, channels)
    return image if image.ndim == 3 else image[..., None]


def from_array(image: np.ndarray, channels: int) -> np.ndarray:
    """Returns an array as uint8 `[H, W, channels]`, by the rules of this module.

    Args:
      image: `[H, W]` or `[H, W, C]`: grey, RGB or RGBA. Booleans are black and white.
      channels: 1 or 3.

    Raises:
      DecodeError: if it has other channels, no pixels, or pixels are out of range.
    """
    if image.dtype == bool:
        image = image * np.uint8(255)
    if not np.issubdtype(image.dtype, np.number) or np.iscomplexobj(image):
        raise DecodeError(f"an array of {image.dtype}, not of numbers")
    image = _to_uint8(image)
    if image.ndim == 3 and image.shape[2] in (3, 4):
        image = image[..., [2, 1, 0]]  # the order of OpenCV
    return _with_channels(image, channels)


def _converted(image: Image.Image, channels: int) -> np.ndarray:
    if image.mode.startswith(("I", "F")):
        return _with_channels(_to_uint8(np.asarray(image)), channels)
    return np.asarray(image.convert("L" if channels == 1 else "RGB"))


def _imdecode(encoded: bytes, flag: int) -> np.ndarray | None:
    if not encoded:
        return None
    try:
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), flag)
    except cv2.error:
        return None


def _with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Converts grey, BGR or BGRA as OpenCV returns it to `[H, W, channels]`."""
    if image.ndim == 2 or image.shape[2] == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), channels, axis=2)
    if image.shape[2] not in (3, 4):
        raise DecodeError(f"{image.shape[2]} channels; only 1, 3 or 4 are supported")
    image = np.ascontiguousarray(image[..., :3])
    if channels == 1:
        return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[..., None]
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _to_uint8(image: np.ndarray) -> np.ndarray:
    """Scales integers and floats to uint8 by the rules of this module.

    Raises:
      DecodeError: if they are out of range.
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
    raise DecodeError(  # also reached by NaN
        f"pixels out of range: {image.dtype} from {low:g} to {high:g}; scale them to "
        "[0, 1] or [0, 255]"
    )


def _check_not_dark(high: int) -> None:
    if 0 < high < _DARK:
        raise DecodeError(
            f"nearly black as 16 bits: the largest value is {high} of 65535; rescale"
        )


@functools.cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _header(encoded: bytes) -> Image.Image:
    """Returns a Pillow image of which only the header has been read."""
    return Image.open(io.BytesIO(encoded), formats=_formats())


def _check_pixels(encoded: bytes) -> None:
    """Checks the size in the header, before decoding could fill the memory.

    Raises:
      DecodeError: if the image has more than `MAX_PIXELS`.
    """
    try:
        header = _header(encoded)
        pixels = header.width * header.height
    except Image.DecompressionBombError:
        pixels = 2 * MAX_PIXELS
    except Exception:  # decoding reports other damage
        return
    if pixels > MAX_PIXELS:
        raise _too_many_pixels()


def _too_many_pixels() -> DecodeError:
    return DecodeError(
        f"too many pixels: the limit is {MAX_PIXELS:,}; resize the image"
    )


def _opened(encoded: bytes) -> Image.Image:
    """Decodes an image with Pillow and turns it upright; truncated ones are errors."""
    try:
        image = _header(encoded)
        image.load()
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise DecodeError(_unknown(encoded)) from error
    except Exception as error:  # its readers raise many kinds on damaged bytes
        raise _decode_error(error) from error


def _unknown(encoded: bytes) -> str:
    """Returns the reason why Pillow cannot identify an image."""
    if not encoded:
        return "an empty file"
    known = image_format(encoded[:MAGIC_BYTES])
    if known is None:
        return "not an image of a known format"
    return f"{known} that is damaged or not supported: convert it to PNG or JPEG"


def examine(encoded: bytes) -> tuple[tuple[int, int], str | None]:
    """Decodes an image strictly.

    Returns:
      (height, width), and what it is converted from; None if it is plain RGB.

    Raises:
      DecodeError: as `decode`; if Pillow or libjpeg find damage; or if a 16-bit image
        would become nearly black.
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
    """Decodes an image with Pillow and returns its kind; None for RGB.

    Raises:
      DecodeError: if Pillow finds damage, or neither it nor OpenCV can decode it.
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
