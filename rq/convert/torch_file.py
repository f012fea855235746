# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads files written by `torch.save` into NumPy arrays, without PyTorch.

Reads the zip archive, and the format of PyTorch before 1.6, in which torchvision's
older weights are. Nothing in a file is trusted: sizes, strides and offsets are checked
against the bytes that are there, and no code in it runs.
"""

from __future__ import annotations

import contextlib
import functools
import io
import pathlib
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from rq.convert import stored_zip, tensor_pickle
from rq.convert.tensor_pickle import LazyStorage

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
    with _opened(path, LazyStorage.array, lambda size: None) as found:
        return found


@contextlib.contextmanager
def opened(path, on_read: Callable[[int], Any]) -> Iterator[dict[str, Any]]:
    """Yields the dict that `torch.save` wrote, its tensors as `LazyTensor`s.

    They can be read within the body; each takes memory only while its array is in use.
    Of a file of before PyTorch 1.6 all are in memory.

    Args:
      path: the file.
      on_read: called with the number of bytes whenever some are read.

    Raises:
      ValueError, FileNotFoundError: as `read_torch_file`; the former also if a tensor
        that is read is damaged tensor is read.
    """
    with _opened(path, lambda storage: storage, on_read) as found:
        yield found


@contextlib.contextmanager
def _opened(path, as_wanted, on_read) -> Iterator[dict[str, Any]]:
    """Yields the dict; `as_wanted` makes of storages what tensors are made of."""
    path = pathlib.Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a file of torch.save")
    with contextlib.ExitStack() as stack:
        with _readable_errors(path):
            if zipfile.is_zipfile(path):
                archive = stack.enter_context(stored_zip.open_stored_zip(path))
                found = _read_zip(path, archive, as_wanted, on_read)
            else:
                found = _read_legacy(path, as_wanted)
            if not isinstance(found, dict):
                raise ValueError(f"it holds a {type(found).__name__}, not a dict")
        yield found


@contextlib.contextmanager
def _readable_errors(path):
    """Raises errors of a damaged file as ValueError of one line, with its path."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (ValueError, *stored_zip.ERRORS) as error:
        raise ValueError(f"cannot read {path}: {stored_zip.one_line(error)}") from None


def _read_zip(path, archive, as_wanted, on_read):
    members = dict.fromkeys(archive.namelist())
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if not pickles:
        raise ValueError("no data.pkl in it: not a file of torch.save")
    prefix = pickles[0].removesuffix("data.pkl")
    order = f"{prefix}byteorder"
    if order in members and archive.read(order) != b"little":
        raise ValueError("it was written on a big-endian machine")
    kinds, storages = {}, {}

    def storage(key, *kind):
        if kinds.setdefault(key, kind) != kind:
            raise ValueError(f"storage {str(key)[:80]} is of two types")
        if key not in storages:
            storages[key] = as_wanted(stored(key, *kind))
        return storages[key]

    def stored(key, dtype, number):
        name = f"{prefix}data/{key}"
        if name not in members:
            raise ValueError(f"storage {str(key)[:80]} is missing")
        if archive.getinfo(name).file_size < number * dtype.itemsize:
            raise ValueError(f"storage {str(key)[:80]} is cut short")

        def read():
            with _readable_errors(path):
                data = archive.read(name)
            on_read(len(data))
            return np.frombuffer(data, dtype, number)

        return LazyStorage(dtype, number, read)

    return tensor_pickle.load(io.BytesIO(archive.read(pickles[0])), storage)


def _array(data: bytes, start: int, key, dtype, number: int) -> np.ndarray:
    if number * dtype.itemsize > len(data) - start:
        raise ValueError(f"storage {str(key)[:80]} is cut short")
    return np.frombuffer(data, dtype, number, start)


def _read_legacy(path, as_wanted):
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
        array = _array(data, start_of_numbers, key, dtype, number)
        file.seek(start_of_numbers + array.nbytes)
        lazy = LazyStorage(dtype, number, functools.partial(np.asarray, array))
        storages[key] = as_wanted(lazy)

    def storage(key, dtype, number):
        if types[key] != (dtype, number):
            raise ValueError(f"storage {key} is of two types")
        return storages[key]

    file.seek(start)
    return tensor_pickle.load(file, storage)
