# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads files written by `torch.save` into NumPy arrays, without PyTorch.

Reads the zip archive, and the format of PyTorch before 1.6, in which torchvision's
older weights are. Nothing in a file is trusted: sizes, strides and offsets are checked
against the bytes that are there, and no code in it runs.
"""

from __future__ import annotations

import io
import pathlib
import zipfile
from typing import Any

import numpy as np

from rq.convert import stored_zip, tensor_pickle

# A file of before PyTorch 1.6 begins with pickles of these two.
_MAGIC = (0x1950A86A20F9469CFC6C, 1001)


def read_torch_file(path) -> dict[str, Any]:
    """Returns the dict that `torch.save` wrote, its tensors as read-only arrays.

    Tensors that shared memory still do.

    Raises:
      ValueError: if the file has another format, is damaged, or holds anything but
        containers, numbers and tensors. One line.
      FileNotFoundError: if it does not exist.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a file of torch.save")
    try:
        read = _read_zip if zipfile.is_zipfile(path) else _read_legacy
        found = read(path)
    except FileNotFoundError:
        raise
    except (ValueError, *stored_zip.ERRORS) as error:
        raise ValueError(f"cannot read {path}: {stored_zip.one_line(error)}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not a dict")
    return found


def _read_zip(path):
    with stored_zip.open_stored_zip(path) as archive:
        members = dict.fromkeys(archive.namelist())
        pickles = [name for name in members if name.endswith("/data.pkl")]
        if not pickles:
            raise ValueError("no data.pkl in it: not a file of torch.save")
        prefix = pickles[0].removesuffix("data.pkl")
        order = f"{prefix}byteorder"
        if order in members and archive.read(order) != b"little":
            raise ValueError("it was written on a big-endian machine")
        storages = {}

        def storage(key, dtype, number):
            if key not in storages:
                name = f"{prefix}data/{key}"
                if name not in members:
                    raise ValueError(f"storage {str(key)[:80]} is missing")
                storages[key] = archive.read(name)
            return _array(storages[key], 0, key, dtype, number)

        return tensor_pickle.load(io.BytesIO(archive.read(pickles[0])), storage)


def _array(data: bytes, start: int, key, dtype, number: int) -> np.ndarray:
    if number * dtype.itemsize > len(data) - start:
        raise ValueError(f"storage {str(key)[:80]} is cut short")
    return np.frombuffer(data, dtype, number, start)


def _read_legacy(path):
    """Pickles: magic numbers, machine, object, names of storages; then each storage."""
    data = path.read_bytes()
    file = io.BytesIO(data)

    def no_storage(*_):
        raise ValueError("a tensor in front of the object")

    try:
        magic = tuple(tensor_pickle.load(file, no_storage) for _ in _MAGIC)
    except ValueError:
        magic = None
    if magic != _MAGIC:
        raise ValueError("it is not a file that torch.save wrote, or is damaged")
    machine = tensor_pickle.load(file, no_storage)
    if not isinstance(machine, dict) or not machine.get("little_endian", True):
        raise ValueError("it was written on a big-endian machine")

    # The numbers come after the object, and their type is known from it alone: it is
    # read once for the types, and again with the numbers.
    start, types, storages = file.tell(), {}, {}

    def note(key, *kind):
        types[key] = kind

    tensor_pickle.load(file, note)
    keys = tensor_pickle.load(file, no_storage)
    if not isinstance(keys, list) or not all(isinstance(k, (str, int)) for k in keys):
        raise ValueError("it has no list of storages")
    if set(keys) != set(types):
        raise ValueError("its list of storages is not that of its tensors")
    for key in keys:
        dtype, number = types[key]
        size = _array(data, file.tell(), key, np.dtype(np.int64), 1)
        if size[0] != number:
            raise ValueError(f"storage {key} has {size[0]} numbers, not {number}")
        start_of_numbers = file.tell() + size.nbytes
        storages[key] = _array(data, start_of_numbers, key, dtype, number)
        file.seek(start_of_numbers + storages[key].nbytes)

    def storage(key, dtype, number):
        if types[key] != (dtype, number):
            raise ValueError(f"storage {key} is of two types")
        return storages[key]

    file.seek(start)
    return tensor_pickle.load(file, storage)
