# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The file that `rq compress` writes.

    bytes   what
    3       'RQC'
    1       version of the format, 1
    4       start of the model's digest
    1       depth: how many codes of each position; + 128 if each is a layer of its own
    varint  number of tokens of the condition that are stored; 0: none
    varint  each of them; the last one is repeated up to the condition's length
    then one stream, or in files with layers one for each depth, the first one first:
    varint  number of bytes of codes
    2       CRC-16 of all bytes so far but other streams', and of the codes' bytes
    ...     codes, see `rq.compression.entropy`

Varints have 7 bits a byte, the lowest first; the highest bit says that more follow. A
file with layers may be cut after any stream: what is left is a whole file.
"""

from __future__ import annotations

import binascii
import dataclasses

from rq.data import DataError

MAGIC, VERSION = b"RQC", 1
SUFFIX = ".rqc"
DIGEST = 4  # bytes
_LAYERS = 128
MAX_DEPTH = _LAYERS - 1
_CRC = 2  # bytes
_DAMAGED = "is damaged: a checksum does not match its bytes"


@dataclasses.dataclass(frozen=True)
class CodeFile:
    """The contents of a file.

    Attributes:
      digest: the first `DIGEST` bytes of that of the model.
      depth: number of codes of each position when it was written.
      layers: whether each depth has a stream of its own.
      condition: tokens, up to the first that is repeated to the end.
      streams: entropy-coded bytes: one, or one for each depth that is whole.
      is_cut: whether it ends within a stream of a later layer.
    """

    digest: bytes
    depth: int
    layers: bool
    condition: tuple[int, ...]
    streams: tuple[bytes, ...]
    is_cut: bool = False


def shorten(tokens) -> tuple[int, ...]:
    """Returns tokens without the repetitions of the last one at the end."""
    tokens = [int(token) for token in tokens]
    while len(tokens) > 1 and tokens[-1] == tokens[-2]:
        tokens.pop()
    return tuple(tokens)


def pack(content: CodeFile) -> bytes:
    """Returns the bytes of a file."""
    flag = _LAYERS if content.layers else 0
    header = MAGIC + bytes([VERSION]) + content.digest + bytes([content.depth | flag])
    for number in (len(content.condition), *content.condition):
        header += _varint(number)
    packed = header
    for stream in content.streams:
        length = _varint(len(stream))
        packed += length + _crc(header, length, stream) + stream
    return packed


def unpack(data: bytes, depth: int | None = None) -> CodeFile:
    """Returns the contents of a file.

    Args:
      data: the file.
      depth: how many layers are read, the first ones; all if None.

    Raises:
      DataError: if it is none, of a later version, cut, or damaged in what is read.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise DataError(f"is no file of rq compress: it does not start with {MAGIC!r}")
    if data[len(MAGIC) : len(MAGIC) + 1] not in (b"", bytes([VERSION])):
        raise DataError(
            f"has format {data[len(MAGIC)]}; this version of rq reads {VERSION}"
        )
    reader = _Reader(data, len(MAGIC) + 1)
    try:
        digest = reader.take(DIGEST)
        flags = reader.take(1)[0]
        condition = tuple(reader.varint() for _ in range(reader.varint()))
        layers, stored = bool(flags & _LAYERS), flags & MAX_DEPTH
        header, streams, is_cut = data[: reader.at], [], False
        number_of_streams = stored if layers else 1
        wanted = min(max(depth or number_of_streams, 1), number_of_streams)
        for number in range(wanted):
            if number and reader.at == len(data):
                break
            try:
                streams.append(_read_stream(reader, header))
            except EOFError:
                if not number:
                    raise
                is_cut = True
                break
    except EOFError:
        raise DataError(f"is cut: it ends after {len(data)} bytes") from None
    reads_all = wanted == number_of_streams
    if reads_all and not is_cut and reader.at < len(data) or not stored:
        raise DataError(_DAMAGED)
    return CodeFile(digest, stored, layers, condition, tuple(streams), is_cut)


def cut(data: bytes, depth: int) -> bytes:
    """Returns a file with layers without those after `depth`.

    Raises:
      DataError: if it is no such file, or has fewer.
    """
    content = unpack(data, depth)
    if not content.layers:
        raise DataError(
            "has one stream for all depths, so that it cannot be cut: "
            "write it anew with --layers"
        )
    if depth > len(content.streams):
        raise DataError(f"has {len(content.streams)} whole layers, not {depth}")
    kept = content.streams[:depth]
    return pack(dataclasses.replace(content, streams=kept, is_cut=False))


def _read_stream(reader: _Reader, header: bytes) -> bytes:
    start = reader.at
    number = reader.varint()
    length = reader.data[start : reader.at]
    crc, stream = reader.take(_CRC), reader.take(number)
    if crc != _crc(header, length, stream):
        raise DataError(_DAMAGED)
    return stream


def _crc(header: bytes, length: bytes, stream: bytes) -> bytes:
    return binascii.crc_hqx(header + length + stream, 0).to_bytes(_CRC, "little")


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(found + bytes([number]))


class _Reader:
    """Reads bytes one after another; raises EOFError at the end."""

    def __init__(self, data: bytes, at: int):
        self.data, self.at = data, at

    def take(self, number: int) -> bytes:
        found = self.data[self.at : self.at + number]
        if len(found) < number:
            raise EOFError
        self.at += number
        return found

    def varint(self) -> int:
        number = shift = 0
        while True:
            byte = self.take(1)[0]
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number
