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
    view = np.lib.stride_tricks.as_strided(storage[offset:], size, strides)
    return np.array(view)


def _rebuild_parameter(data, *_):
    return data


_GLOBALS = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("collections", "Counter"): collections.Counter,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): tuple,
    ("builtins", "dict"): dict,
    ("builtins", "int"): int,
} | {("torch", name): np.dtype(dtype) for name, dtype in _STORAGES.items()}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, archive, prefix):
        super().__init__(file)
        self._archive, self._prefix = archive, prefix

    def find_class(self, module, name):
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise ValueError(f"refusing to load {module}.{name}") from None

    def persistent_load(self, pid):
        _, dtype, key, _, _ = pid
        return np.frombuffer(self._archive.read(f"{self._prefix}data/{key}"), dtype)


def read_torch_file(path) -> dict:
    """The object that `torch.save` wrote, its tensors as NumPy arrays.

    Raises:
      ValueError: on files of another format (PyTorch before 1.6 wrote one), or pickles
        with more than containers, numbers and tensors in them.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is not a file that torch.save of PyTorch >= 1.6 wrote"
        )
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if not names:
            raise ValueError(f"{path} holds no pickle: not a file of torch.save")
        prefix = names[0].removesuffix("data.pkl")
        orders = [n for n in archive.namelist() if n == f"{prefix}byteorder"]
        if orders and archive.read(orders[0]) != b"little":
            raise ValueError(f"{path} is big-endian")
        with archive.open(names[0]) as file:
            return _Unpickler(file, archive, prefix).load()
