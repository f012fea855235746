# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads files written by `torch.save` into NumPy arrays, without PyTorch.

Only containers, numbers and tensors are rebuilt: a pickle that names anything else is
refused, so that a checkpoint from elsewhere cannot run code.
"""

from __future__ import annotations

import collections
import pickle
import zipfile

import ml_dtypes
import numpy as np

_STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


def _rebuild_tensor(storage, offset, size, stride, *_):
    strides = [step * storage.itemsize for step in stride]
    # A view: files of before PyTorch 1.6 bring the numbers after the pickle.
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides)


def _rebuild_parameter(data, *_):
    return data


_GLOBALS = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("collections", "Counter"): collections.Counter,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): tuple,
    ("builtins", "dict"): dict,
    ("builtins", "int"): int,
} | {("torch", name): np.dtype(dtype) for name, dtype in _STORAGES.items()}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, storage=None):
        """`storage(key, dtype, size)` gives the array behind tensors."""
        super().__init__(file)
        self._storage = storage

    def find_class(self, module, name):
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise ValueError(f"refusing to load {module}.{name}") from None

    def persistent_load(self, pid):
        _, dtype, key, _, size, *_ = pid
        return self._storage(key, dtype, size)


def read_torch_file(path) -> dict:
    """The object that `torch.save` wrote, its tensors as NumPy arrays.

    Raises:
      ValueError: on files of another format, or pickles with more than containers,
        numbers and tensors in them.
    """
    if not zipfile.is_zipfile(path):
        return _read_legacy(path)
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if not names:
            raise ValueError(f"{path} holds no pickle: not a file of torch.save")
        prefix = names[0].removesuffix("data.pkl")
        orders = [n for n in archive.namelist() if n == f"{prefix}byteorder"]
        if orders and archive.read(orders[0]) != b"little":
            raise ValueError(f"{path} is big-endian")

        def storage(key, dtype, _):
            return np.frombuffer(archive.read(f"{prefix}data/{key}"), dtype)

        with archive.open(names[0]) as file:
            return _Unpickler(file, storage).load()


# The format of PyTorch before 1.6, in which torchvision's older weights are: pickles
# of these two, of the machine, of the object and of the storages' names, then each
# storage's size and numbers.
_LEGACY = (0x1950A86A20F9469CFC6C, 1001)


def _read_legacy(path) -> dict:
    storages = {}

    def storage(key, dtype, size):
        if key not in storages:
            storages[key] = np.zeros(size, dtype)
        return storages[key]

    with open(path, "rb") as file:
        try:
            start = tuple(_Unpickler(file).load() for _ in _LEGACY)
        except (pickle.UnpicklingError, EOFError, ValueError):
            start = None
        if start != _LEGACY:
            raise ValueError(f"{path} is not a file that torch.save wrote")
        machine = _Unpickler(file).load()
        if not machine.get("little_endian", True):
            raise ValueError(f"{path} is big-endian")
        result = _Unpickler(file, storage).load()
        for key in _Unpickler(file).load():
            array = storages[key]
            (size,) = np.fromfile(file, np.int64, 1)
            if size != array.size:
                raise ValueError(f"{path}: storage {key} has {size} numbers")
            array[...] = np.fromfile(file, array.dtype, array.size)
    return result
