# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Interprets the pickles inside PyTorch's files: containers, numbers and tensors.

A pickle is a program for a stack machine, and Python's own machine calls whatever the
program names and allocates what it asks for. This one knows only the instructions that
`torch.save` writes and only the calls in `_CALLS`, as `torch.load(weights_only=True)`
does, so that a file from elsewhere can neither run code nor exhaust memory.
"""

from __future__ import annotations

import dataclasses
import math
import pickletools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {
    "torch.FloatStorage": np.float32,
    "torch.DoubleStorage": np.float64,
    "torch.HalfStorage": np.float16,
    "torch.BFloat16Storage": ml_dtypes.bfloat16,
    "torch.LongStorage": np.int64,
    "torch.IntStorage": np.int32,
    "torch.ShortStorage": np.int16,
    "torch.CharStorage": np.int8,
    "torch.ByteStorage": np.uint8,
    "torch.BoolStorage": np.bool_,
}
_MAX_DIMENSIONS = 32


class _Name(str):
    """A dotted name that the pickle refers to, not the object behind it."""


_MARK = object()


def _is_count(x) -> bool:
    return type(x) is int and 0 <= x < 2**62


@dataclasses.dataclass
class LazyStorage:
    """The numbers behind tensors, which are read when a tensor is.

    Attributes:
      dtype: of the numbers.
      size: their number.
      read: returns them, `[size]`.
      tensors: number of tensors that lie in it; the numbers of several stay in memory.
    """

    dtype: np.dtype
    size: int
    read: Callable[[], np.ndarray]
    tensors: int = 0
    _kept: np.ndarray | None = None

    def array(self) -> np.ndarray:
        """Returns the numbers."""
        if self._kept is not None:
            return self._kept
        array = self.read()
        if self.tensors > 1:
            self._kept = array
        return array


class LazyTensor:
    """A tensor in a file, which is read whenever NumPy makes an array of it."""

    def __init__(self, storage: LazyStorage, offset: int, shape, strides):
        """See `_view`; the caller has checked that the view fits the storage."""
        storage.tensors += 1
        self.storage, self.dtype, self.shape = storage, storage.dtype, tuple(shape)
        self._offset, self._strides = offset, strides

    @property
    def nbytes(self) -> int:
        """Size of its array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """Reads the array, for `np.asarray`."""
        del copy
        array = _view(self.storage.array(), self._offset, self.shape, self._strides)
        return array if dtype is None else array.astype(dtype)


def _view(storage: np.ndarray, offset: int, shape, strides) -> np.ndarray:
    """Returns a view of a 1-D array; strides are in numbers."""
    strides = [step * storage.itemsize for step in strides] if strides else None
    return np.ndarray(shape, storage.dtype, storage[offset:], strides=strides)


def _tensor(storage, offset, size, stride, *_):
    """A view of a storage, bounds checked; None before storages are known."""
    if storage is None:
        return None
    if not isinstance(storage, (np.ndarray, LazyStorage)):
        raise ValueError("a tensor without a storage")
    if len(size) != len(stride) or len(size) > _MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {len(size)} sizes and {len(stride)} strides")
    if not all(map(_is_count, (offset, *size, *stride))):
        raise ValueError("a tensor's sizes, strides or offset are no counts")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    count = math.prod(size)
    # A view larger than its storage repeats numbers, and would grow when copied.
    if count > storage.size or (last if count else offset - 1) >= storage.size:
        raise ValueError(
            f"a tensor of shape {size}, strides {stride} at {offset} does not fit its "
            f"storage of {storage.size} numbers"
        )
    strides = stride if count else None
    if isinstance(storage, LazyStorage):
        return LazyTensor(storage, offset, size, strides)
    return _view(storage, offset, size, strides)


def _dict(items=()) -> dict:
    if isinstance(items, dict):
        return items
    made = {}
    _set_items(made, items)
    return made


def _size(items) -> tuple:
    if not isinstance(items, tuple):
        raise ValueError("a torch.Size of no tuple")
    return items


def _set_items(target, items) -> None:
    for key, value in items:
        # Not tuples: Python's hash of deeply nested ones overflows the C stack.
        if not isinstance(key, (str, int, float, bytes, type(None))):
            raise ValueError(f"a dict's key is a {type(key).__name__}")
        target[key] = value


_CALLS: dict[str, Callable] = {
    "collections.OrderedDict": _dict,
    "collections.Counter": _dict,
    "collections.defaultdict": lambda factory=None, items=(): _dict(items),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.Size": _size,
}


class Machine:
    """The stack machine.

    Attributes:
      calls: functions by the names that a pickle may call.
      names: other names that it may refer to.
    """

    calls: dict[str, Callable] = _CALLS
    names = frozenset({*DTYPES, "builtins.dict", "builtins.int"})

    def __init__(self):
        self.stack, self.memo = [], {}
        self.steps = self.copied = 0

    def load(self, file):
        """Returns the object of one pickle, and leaves `file` behind its end.

        Args:
          file: a binary file in memory.

        Raises:
          ValueError: if the pickle is damaged, or holds more than it may; names what is
            refused.
        """
        try:
            for opcode, arg, _ in pickletools.genops(file):
                if opcode.name == "STOP":
                    break
                self.step(opcode.name, arg)
            return self.stack.pop()
        except (
            TypeError,
            IndexError,
            KeyError,
            AttributeError,
            OverflowError,
        ) as error:
            raise ValueError(f"damaged pickle: {error}") from None

    def name(self, module, name) -> _Name:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full not in self.calls and full not in self.names:
            raise ValueError(
                f"refusing to load {full[:80]}: only containers, numbers and tensors"
            )
        return _Name(full)

    def build(self, state) -> None:
        """Sets the state of the top of the stack: a state dict's `_metadata`."""
        del state
        self.top(dict)

    def persistent(self, found):
        """Returns the storage that a tuple names."""
        raise ValueError("refusing a reference to a storage")

    def pop_to_mark(self) -> list:
        for k in range(len(self.stack) - 1, -1, -1):
            if self.stack[k] is _MARK:
                items = self.stack[k + 1 :]
                del self.stack[k:]
                return items
        raise ValueError("an instruction without its mark")

    def top(self, kind):
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise ValueError(f"an instruction for a {kind.__name__} without one")
        return self.stack[-1]

    def step(self, name: str, arg) -> None:
        stack, push = self.stack, self.stack.append
        self.steps += 1
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                push(_MARK)
            case "NONE":
                push(None)
            case "NEWTRUE" | "NEWFALSE":
                push(name == "NEWTRUE")
            case "EMPTY_DICT":
                push({})
            case "EMPTY_LIST":
                push([])
            case "EMPTY_TUPLE":
                push(())
            case "DICT":
                items = self.pop_to_mark()
                push(_dict(zip(items[::2], items[1::2], strict=True)))
            case "LIST":
                push(self.pop_to_mark())
            case "TUPLE":
                push(tuple(self.pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(name[-1]))]
                push(tuple(items[::-1]))
            case "APPEND":
                item = stack.pop()
                self.top(list).append(item)
            case "APPENDS":
                items = self.pop_to_mark()
                self.top(list).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set_items(self.top(dict), [(key, value)])
            case "SETITEMS":
                items = self.pop_to_mark()
                pairs = zip(items[::2], items[1::2], strict=True)
                _set_items(self.top(dict), pairs)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[arg] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                push(self.memo[arg])
            case "GLOBAL":
                push(self.name(*arg.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                push(self.name(module, attribute))
            case "REDUCE":
                args, function = stack.pop(), stack.pop()
                if not isinstance(function, _Name) or function not in self.calls:
                    raise ValueError("refusing to call what is no function")
                # A list is made once, item by item, and copied into one dict at most.
                self.copied += sum(len(x) for x in args if isinstance(x, list))
                if self.copied > self.steps:
                    raise ValueError("lists are copied again and again")
                push(self.calls[function](*args))
            case "BUILD":
                self.build(stack.pop())
            case "BINPERSID":
                push(self.persistent(stack.pop()))
            case _ if name in _VALUES:
                push(arg)
            case _:
                raise ValueError(f"refusing the pickle instruction {name}")


_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}


class _TensorMachine(Machine):
    def __init__(self, storage):
        super().__init__()
        self.storage = storage

    def persistent(self, found):
        """The storage that ("storage", type, key, device, number, ...) names."""
        kind, dtype, key, _, number, *view = found
        if kind != "storage" or not isinstance(dtype, _Name) or not _is_count(number):
            raise ValueError("a storage of an unknown kind")
        if not isinstance(key, (str, int)) or any(view):
            raise ValueError("a storage that is a view of another")
        return self.storage(key, np.dtype(DTYPES[dtype]), number)


def load(file, storage: Callable[[Any, np.dtype, int], Any]):
    """Returns the object of one pickle, and leaves `file` behind its end.

    Args:
      file: a binary file in memory.
      storage: function of (key, dtype, number of elements) to the array behind
        tensors, or its `LazyStorage`: the tensors become `LazyTensor`s. It may return
        None, and the tensors become None.

    Raises:
      ValueError: see `Machine.load`.
    """
    return _TensorMachine(storage).load(file)
