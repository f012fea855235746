# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads and writes .safetensors files, with the library of that name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import safetensors.numpy

from rq.convert import stored_zip
from rq.parallel import atomic_files


class _Tensor:
    """An array in a file, which is read when NumPy makes an array of it."""

    def __init__(self, read: Callable[[], np.ndarray], shape: tuple[int, ...]):
        self._read, self.shape = read, shape

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        del copy
        array = self._read()
        return array if dtype is None else array.astype(dtype)


@contextlib.contextmanager
def opened(path, on_read: Callable[[int], Any]) -> Iterator[dict[str, _Tensor]]:
    """Yields the arrays by name; they can be read within the body.

    Args:
      path: the file.
      on_read: called with the number of bytes whenever some are read.

    Raises:
      ValueError: if the file is no .safetensors, or damaged.
      FileNotFoundError: if it does not exist.
    """

    def tensor(name):
        def read():
            with _readable_errors(path):
                array = file.get_tensor(name)
            on_read(array.nbytes)
            return array

        return _Tensor(read, tuple(file.get_slice(name).get_shape()))

    with contextlib.ExitStack() as stack:
        with _readable_errors(path):
            file = safetensors.safe_open(path, framework="numpy")
            stack.enter_context(file)
            found = {name: tensor(name) for name in file.keys()}
        yield found


@contextlib.contextmanager
def _readable_errors(path):
    try:
        yield
    except (safetensors.SafetensorError, TypeError) as error:
        reason = stored_zip.one_line(error)
        raise ValueError(f"cannot read {path}: {reason}") from None


def write(path, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes arrays by name; needs memory for all of them."""
    with atomic_files.atomic_write(path) as temporary:
        safetensors.numpy.save_file(dict(arrays), temporary, {"format": "pt"})
        os.chmod(temporary, 0o644)  # the library's files are their owner's alone
