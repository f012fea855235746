# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Entropy coding of codes by given probabilities, with the library constriction.

Asymmetric numeral systems: the bytes have as many bits as the information of the codes,
and 32 for a checksum. The coder is a stack: it starts with the checksum, codes are
pushed in reverse, and who pops them with the same probabilities finds it again below.
With other probabilities, as they are rounded to 24 bits, all that follows is arbitrary.
"""

from __future__ import annotations

import zlib

import numpy as np

from rq.config import ConfigError

_WORD = np.dtype("<u4")


def _constriction():
    """Imports the library.

    Raises:
      ConfigError: if it is not installed.
    """
    try:
        import constriction
    except ImportError as error:
        raise ConfigError(
            f"entropy coding needs constriction ({error}): pip install 'rq[compress]'"
        ) from None
    return constriction.stream


def _checksum(codes) -> int:
    """Returns a CRC-32 of codes, above 0: the coder's last word must be."""
    return zlib.crc32(np.asarray(codes, _WORD).tobytes()) or 1


def encode(codes: np.ndarray, probabilities: np.ndarray) -> bytes:
    """Returns codes as bytes.

    Args:
      codes: int32 `[N]`.
      probabilities: float32 `[N, K]`, of all codes at each place. The library rounds
        them to multiples of 2^-24, above 0.
    """
    stream = _constriction()
    coder = stream.stack.AnsCoder(np.asarray([_checksum(codes)], np.uint32))
    coder.encode_reverse(codes, stream.model.Categorical(perfect=False), probabilities)
    # The last word is not 0, but its last bytes may be.
    return coder.get_compressed().astype(_WORD).tobytes().rstrip(b"\0")


class Decoder:
    """Reads the codes that `encode` wrote, one after another."""

    def __init__(self, data: bytes):
        """Takes what `encode` returned."""
        self._stream, self._codes = _constriction(), []
        data = data.rstrip(b"\0")
        words = np.frombuffer(data + bytes(-len(data) % _WORD.itemsize), _WORD)
        self._coder = self._stream.stack.AnsCoder(words.astype(np.uint32))

    def decode(self, probabilities: np.ndarray) -> int:
        """Returns the next code, given float32 `[K]`."""
        model = self._stream.model.Categorical(probabilities, lazy=True)
        self._codes.append(int(self._coder.decode(model)))
        return self._codes[-1]

    def is_exact(self) -> bool:
        """Returns whether all codes were read, and are those that were written."""
        return self._coder.get_compressed().tolist() == [_checksum(self._codes)]
