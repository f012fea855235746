# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds damage that decoders ignore, returning images with missing parts."""

from __future__ import annotations

import zlib

from rq.data.walk import MAGIC_BYTES, image_format

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
# Parts of libjpeg's warnings. Others, such as extra bytes in a file, are harmless.
_DAMAGE = (
    "premature end",
    "bad Huffman",
    "bad arithmetic",
    "instead of RST",
    *(f"before marker 0xd{number}" for number in range(8)),
)


class DecodeError(ValueError):
    """Raised when bytes are not an image or are a damaged one."""


def check_intact(encoded: bytes) -> None:
    """Checks the data of a JPEG, PNG, WebP or AVIF for damage after the header.

    Raises:
      DecodeError: if there is any.
    """
    known = image_format(encoded[:MAGIC_BYTES])
    if known == "JPEG":
        check_end(encoded)
        _check_scan(encoded)
    elif known == "PNG":
        _check_chunks(encoded)
    elif known in ("WebP", "AVIF"):
        _check_tail(encoded)


def check_end(encoded: bytes) -> None:
    """Raises DecodeError if a JPEG has no end marker, so that it is truncated."""
    if encoded.startswith(JPEG_START) and not encoded.endswith(JPEG_END):
        if encoded.find(JPEG_END, len(encoded) // 2) < 0:
            raise DecodeError("a truncated JPEG")


def _check_scan(encoded: bytes) -> None:
    """Checks a JPEG for missing or damaged data after the header.

    If there is an end marker, Pillow and OpenCV fill in missing data and hide libjpeg's
    warnings; simplejpeg raises them. The check takes about as long as another decode.

    Raises:
      DecodeError: if libjpeg warns of damaged data.
    """
    import simplejpeg  # only needed to prepare data

    try:
        simplejpeg.decode_jpeg(encoded, colorspace="GRAY", strict=True)
    except ValueError as error:
        message = " ".join(str(error).split())
        if any(word in message for word in _DAMAGE):
            raise DecodeError(message) from error


def _check_chunks(encoded: bytes) -> None:
    """Checks all checksums of a PNG; Pillow checks only those before the pixels.

    Raises:
      DecodeError: if one is wrong or the last chunk is missing.
    """
    at, kind = 8, b""
    while kind != b"IEND":
        if at + 12 > len(encoded):
            raise DecodeError("a truncated PNG")
        end = at + 8 + int.from_bytes(encoded[at : at + 4], "big")
        kind, checksum = encoded[at + 4 : at + 8], encoded[end : end + 4]
        needed = kind[:1].isupper()  # other chunks hold no pixels
        if needed and zlib.crc32(encoded[at + 4 : end]) != int.from_bytes(
            checksum, "big"
        ):
            raise DecodeError("a PNG with a wrong checksum")
        at = end + 4


def _check_tail(encoded: bytes) -> None:
    """Checks for a file that was allocated at full size but not written to its end.

    Raises:
      DecodeError: if more than the last sixteenth of it is zeros.
    """
    if len(encoded) - len(encoded.rstrip(b"\0")) > max(64, len(encoded) // 16):
        raise DecodeError("the end of the file is zeros")
