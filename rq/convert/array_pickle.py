# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads pickles of nested dicts of NumPy arrays, with the restricted machine."""

from __future__ import annotations

import io
import math
import pathlib

import numpy as np

from rq.convert import stored_zip, tensor_pickle

_DTYPES = ("f2", "f4", "f8", "i4", "i8", "u1")
_MAX_DICTS, _MAX_NAME = 1000, 1000


class _Made:
    """What a pickle makes first, and completes with a second instruction."""


class _Dtype(_Made):
    """A dtype; its byte order comes second."""

    def __init__(self, name, *_):
        if name not in _DTYPES:
            raise ValueError(f"refusing arrays of {str(name)[:80]}")
        self.name = name


class _Array(_Made):
    """An array; its shape and numbers come second."""

    def __init__(self, *_):
        self.array = None


def _fill(array: _Array, state) -> None:
    """Sets the array from (version, shape, dtype, is_fortran, data)."""
    _, shape, dtype, is_fortran, data = state
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
        raise ValueError("an array without numbers")
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("an array's shape is no counts")
    dtype, number = np.dtype(dtype.name), math.prod(shape)
    if number * dtype.itemsize != len(data):
        raise ValueError(f"an array of shape {shape} has {len(data)} bytes")
    flat = np.frombuffer(data, dtype, number)
    array.array = flat.reshape(shape, order="F" if is_fortran else "C")


class _ArrayMachine(tensor_pickle.Machine):
    calls = {
        "numpy.core.multiarray._reconstruct": _Array,
        "numpy._core.multiarray._reconstruct": _Array,
        "numpy.dtype": _Dtype,
    }
    names = frozenset({"numpy.ndarray"})

    def build(self, state) -> None:
        made = self.top(_Made)
        if isinstance(made, _Array):
            _fill(made, state)
        elif state[1] not in ("<", "|"):
            raise ValueError("numbers of a big-endian machine")


def _flat(tree: dict) -> dict[str, np.ndarray]:
    """Returns the arrays of nested dicts, by names joined with '/'."""
    found, seen, waiting = {}, set(), [("", tree)]
    while waiting:
        prefix, section = waiting.pop()
        if id(section) in seen or len(seen) > _MAX_DICTS:
            raise ValueError("too many dicts, or one of them twice")
        seen.add(id(section))
        for name, value in section.items():
            if isinstance(value, dict):
                waiting.append((f"{prefix}{name}/"[-_MAX_NAME:], value))
            elif isinstance(value, _Array) and value.array is not None:
                found[f"{prefix}{name}"] = value.array
            else:
                raise ValueError(f"{str(name)[:80]} is no array")
    return found


def read_array_pickle(path) -> dict[str, np.ndarray]:
    """Returns the arrays of a pickle of nested dicts, by names joined with '/'.

    Raises:
      ValueError: if the file is damaged or holds anything else; nothing in it runs.
      FileNotFoundError: if it does not exist.
    """
    data = pathlib.Path(path).read_bytes()
    try:
        tree = _ArrayMachine().load(io.BytesIO(data))
        if not isinstance(tree, dict):
            raise ValueError(f"it holds a {type(tree).__name__}, not a dict")
        return _flat(tree)
    except ValueError as error:
        raise ValueError(f"cannot read {path}: {stored_zip.one_line(error)}") from None
