# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Damage that decoders pass over: they return images of which a part is missing."""

from __future__ import annotations

import zlib

from rq.data.walk import MAGIC_BYTES, image_format

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
# In libjpeg's warnings; others, as of bytes between two parts of a file, are harmless.
_DAMAGE = (
    "premature end",
    "bad Huffman",
    "bad arithmetic",
    "instead of RST",
    *(f"before marker 0xd{number}" for number in range(8)),
)


class DecodeError(ValueError):
    """Bytes that are no image, or a damaged one."""


def check_intact(encoded: bytes) -> None:
    """Finds damage in a JPEG, PNG, WebP or AVIF behind an intact header.

    Raises:
      DecodeError: where there is any.
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
    """Raises DecodeError on a JPEG that was cut short: there is no end marker."""
    if encoded.startswith(JPEG_START) and not encoded.endswith(JPEG_END):
        if encoded.find(JPEG_END, len(encoded) // 2) < 0:
            raise DecodeError("a JPEG without its end")


def _check_scan(encoded: bytes) -> None:
    """Finds a JPEG of which a part is missing or damaged behind an intact header.

    The decoders of Pillow and OpenCV fill up what is missing, if the end marker is
    there, and keep libjpeg's warnings to themselves; this one raises them. It costs
    about as much as another decode.

    Raises:
      DecodeError: where libjpeg warns of damaged data.
    """
    import simplejpeg  # not needed where nothing is prepared

    try:
        simplejpeg.decode_jpeg(encoded, colorspace="GRAY", strict=True)
    except ValueError as error:
        message = " ".join(str(error).split())
        if any(word in message for word in _DAMAGE):
            raise DecodeError(message) from error


def _check_chunks(encoded: bytes) -> None:
    """Compares the checksums of a PNG, of which Pillow reads those in front alone.

    Raises:
      DecodeError: where one is wrong, or the last chunk is missing.
    """
    at, kind = 8, b""
    while kind != b"IEND":
        if at + 12 > len(encoded):
            raise DecodeError("a PNG without its end")
        end = at + 8 + int.from_bytes(encoded[at : at + 4], "big")
        kind, checksum = encoded[at + 4 : at + 8], encoded[end : end + 4]
        needed = kind[:1].isupper()  # others hold no pixels
        if needed and zlib.crc32(encoded[at + 4 : end]) != int.from_bytes(
            checksum, "big"
        ):
            raise DecodeError("a PNG with a wrong checksum")
        at = end + 4


def _check_tail(encoded: bytes) -> None:
    """Finds a compressed file that was made at full size and never written to its end.

    Raises:
      DecodeError: where more than a sixteenth of it, at the end, is zeros.
    """
    if len(encoded) - len(encoded.rstrip(b"\0")) > max(64, len(encoded) // 16):
        raise DecodeError("zeros in place of the end of the file")
