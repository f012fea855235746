# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes files as `torch.save` does, without PyTorch; also such as it never would."""

import collections
import io
import pickle
import struct
import sys
import types
import zipfile

import numpy as np

_STORAGES = {"float32": "FloatStorage", "int64": "LongStorage", "bool": "BoolStorage"}


class Tensor:
    """Pickles as a tensor does; `changes` replace what it says of itself."""

    def __init__(self, array, key="0", **changes):
        """`changes`: of offset, size, stride, number (of the storage), kind."""
        self.array, self.key = np.ascontiguousarray(array), key
        strides = tuple(s // self.array.itemsize for s in self.array.strides)
        self.fields = dict(
            offset=0,
            size=self.array.shape,
            stride=strides,
            number=self.array.size,
            kind=_STORAGES[str(self.array.dtype)],
        )
        self.fields |= changes

    def __reduce__(self):
        """As PyTorch's."""
        f = self.fields
        args = (_Storage(self), f["offset"], f["size"], f["stride"], False, {})
        return sys.modules["torch._utils"]._rebuild_tensor_v2, args


class _Storage:
    def __init__(self, tensor):
        self.tensor = tensor


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        if not isinstance(obj, _Storage):
            return None
        f, key = obj.tensor.fields, obj.tensor.key
        return (
            "storage",
            getattr(sys.modules["torch"], f["kind"]),
            key,
            "cpu",
            f["number"],
        )


def _fake_torch() -> dict:
    """Modules with functions of PyTorch's names, which pickles refer to by name."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2():
        """Never called."""

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    for name in (*_STORAGES.values(), "QInt8Storage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    torch._utils = utils
    return {"torch": torch, "torch._utils": utils}


def pickled(obj, protocol=2) -> bytes:
    """The pickle of an object with `Tensor`s in it."""
    before = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules.update(_fake_torch())
    try:
        file = io.BytesIO()
        _Pickler(file, protocol).dump(obj)
        return file.getvalue()
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def tensors(obj):
    """All `Tensor`s in an object."""
    if isinstance(obj, Tensor):
        yield obj
    elif isinstance(obj, dict):
        for value in obj.values():
            yield from tensors(value)
    elif isinstance(obj, (list, tuple)):
        for value in obj:
            yield from tensors(value)


def write_zip(path, pickle_bytes: bytes, storages: dict[str, bytes], **options):
    """The archive of a pickle and its storages."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("model/data.pkl", pickle_bytes)
        archive.writestr("model/byteorder", "little")
        for key, data in storages.items():
            archive.writestr(f"model/data/{key}", data)
        archive.writestr("model/version", "3\n")


def save(path, obj, protocol=2, **options):
    """`torch.save` of today."""
    storages = {t.key: t.array.tobytes() for t in tensors(obj)}
    write_zip(path, pickled(obj, protocol), storages, **options)


def save_legacy(path, obj, protocol=2):
    """`torch.save` before PyTorch 1.6."""
    storages = {t.key: t.array for t in tensors(obj)}
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    with open(path, "wb") as file:
        for part in (0x1950A86A20F9469CFC6C, 1001, machine):
            pickle.dump(part, file, protocol)
        file.write(pickled(obj, protocol))
        pickle.dump(sorted(storages), file, protocol)
        for key in sorted(storages):
            file.write(struct.pack("<q", storages[key].size) + storages[key].tobytes())


def example() -> collections.OrderedDict:
    """A checkpoint with all that files of training have, and the arrays in it."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, 4), dtype=np.float32)
    state = collections.OrderedDict(
        weight=Tensor(weight),
        tied=Tensor(weight),
        column=Tensor(weight, size=(3,), stride=(4,), offset=1),
        steps=Tensor(np.asarray(7), key="1"),
        mask=Tensor(np.array([True, False]), key="2"),
        empty=Tensor(np.zeros((0, 3), np.float32), key="3"),
    )
    state._metadata = collections.OrderedDict({"": {"version": 1}})
    optimizer = {
        "state": {0: {"step": 3}},
        "param_groups": [{"lr": 1e-3, "params": [0]}],
    }
    counter = collections.Counter({10: 1})
    factory = collections.defaultdict(dict, {1: {}})
    return {
        "epoch": 2**40,
        "state_dict": state,
        "optimizer": optimizer,
        "milestones": counter,
        "others": (factory, None, True, "ä", -1.5),
    }
