# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes files that `torch.load(weights_only=True)` reads, without PyTorch.

Such a file is an uncompressed zip archive: a pickle, in which tensors refer to storages
by key, and one member for each storage. Arrays are written one at a time.
"""

from __future__ import annotations

import pathlib
import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping

import numpy as np

from rq.convert.tensor_pickle import DTYPES
from rq.parallel import atomic_files

_STORAGES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


def write_torch_file(
    path, state_dicts: Mapping[str, Iterable[tuple[str, np.ndarray]]]
) -> None:
    """Writes what `torch.save({"state_dict": {NAME: tensor, ...}, ...})` would.

    Args:
      path: the file to write.
      state_dicts: pairs of names and arrays, which may be generated one at a time, by
        the name of each state dict.
    """
    prefix = pathlib.Path(path).stem
    with atomic_files.atomic_write(path) as temporary:
        with zipfile.ZipFile(temporary, "w") as archive:

            def add(name: str, array: np.ndarray) -> bytes:
                key = str(len(archive.namelist()))
                member = zipfile.ZipInfo(f"{prefix}/data/{key}")
                member.file_size = array.nbytes  # from which zipfile decides on zip64
                with archive.open(member, "w") as file:
                    file.write(
                        np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
                    )
                return _text(name) + _tensor(array, key)

            content = b"".join(
                _text(name) + _dict(add(*pair) for pair in pairs)
                for name, pairs in state_dicts.items()
            )
            program = b"\x80\x02" + _dict([content]) + b"."  # PROTO 2, ..., STOP
            for name, data in (
                ("data.pkl", program),
                ("byteorder", b"little"),
                ("version", b"3\n"),
            ):
                archive.writestr(zipfile.ZipInfo(f"{prefix}/{name}"), data)


# Instructions of pickle's stack machine, protocol 2.


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data  # BINUNICODE


def _int(number: int) -> bytes:
    return pickle.dumps(number, 2)[2:-1]  # without PROTO and STOP


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"  # MARK, ..., TUPLE


def _dict(pairs: Iterable[bytes]) -> bytes:
    return b"}(" + b"".join(pairs) + b"u"  # EMPTY_DICT, MARK, ..., SETITEMS


def _name(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()  # GLOBAL


def _tensor(array: np.ndarray, key: str) -> bytes:
    storage = _tuple(
        _text("storage"),
        _name(_STORAGES[array.dtype]),
        _text(key),
        _text("cpu"),
        _int(array.size),
    )
    strides = [int(np.prod(array.shape[i + 1 :])) for i in range(array.ndim)]
    hooks = _name("collections.OrderedDict") + b")R"  # EMPTY_TUPLE, REDUCE
    arguments = _tuple(
        storage + b"Q",  # BINPERSID
        _int(0),
        _tuple(*map(_int, array.shape)),
        _tuple(*map(_int, strides)),
        b"\x89",  # NEWFALSE: needs no gradient
        hooks,
    )
    return _name("torch._utils._rebuild_tensor_v2") + arguments + b"R"
