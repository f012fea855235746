# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks the names, shapes and values of PyTorch state dicts."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping

import jax.numpy as jnp
import numpy as np
from absl import logging

WRAPPER = "module."  # in front of all names where DataParallel wrapped the model
_SHOWN = 3  # names in a message


def unwrapped(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Returns a state dict without the prefix `module.`, if all names have it."""
    if not all(str(name).startswith(WRAPPER) for name in arrays):
        return arrays
    return {name[len(WRAPPER) :]: array for name, array in arrays.items()}


class StateDict:
    """Checks the shapes and values of arrays that are taken by name.

    Arrays may also be `tensor_pickle.LazyTensor`s: each is read when it is taken.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        """Takes arrays by their PyTorch names, `unwrapped`."""
        arrays = unwrapped(arrays)
        self._arrays, self._left, self._bad = arrays, set(arrays), []

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def require(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Checks that all names are there, with these shapes, and reads nothing.

        Raises:
          ValueError: with the number of names at fault and the first few.
        """
        self._require_names(shapes)
        wrong = []
        for name, shape in shapes.items():
            found = getattr(self._arrays[name], "shape", None)  # None: no array at all
            if found != tuple(shape):
                wrong.append(f"{name} has shape {found}, expected {tuple(shape)}")
        if wrong:
            others = len(wrong) - 1
            more = f"; {others} other names have wrong shapes" if others else ""
            raise ValueError(wrong[0] + more)

    def _require_names(self, names: Collection[str]) -> None:
        missing = [name for name in names if name not in self._arrays]
        if not missing:
            return
        others = sorted(map(str, self._left.difference(names)))
        hint = f"; it has {few(others)} instead" if others else ""
        if len(missing) == 1:
            raise ValueError(f"the state dict has no {missing[0]!r}{hint}")
        raise ValueError(
            f"the state dict lacks {few(missing)} of {len(names)} names{hint}"
        )

    def take(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """Returns the array of that name; floating-point numbers become float32.

        Raises:
          ValueError: if there is none, or of another shape.
        """
        self._require_names([name])
        if shape is not None:
            self.require({name: shape})
        array = np.asarray(self._arrays[name])
        if jnp.issubdtype(array.dtype, jnp.floating):
            with np.errstate(over="ignore"):  # becomes infinite
                array = array.astype(np.float32, copy=False)
        if not _is_finite(array):
            self._bad.append(name)
        self._left.discard(name)
        return array

    def check_values(self) -> None:
        """Checks the numbers of all arrays that were taken.

        Raises:
          ValueError: if some are NaN or infinite, with the number of arrays and the
            names of the first few.
        """
        if self._bad:
            raise ValueError(f"NaN, infinite or no numbers at all in {few(self._bad)}")

    def finish(self) -> None:
        """Checks values, see `check_values`; warns of names that nothing asked for."""
        self.check_values()
        if self._left:
            logging.warning("unused in the state dict: %s", few(sorted(self._left)))


def few(names: Iterable) -> str:
    """Returns the number of names and the first few, for messages."""
    names = [str(name)[:80] for name in names]
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} ({', '.join(names[:_SHOWN])}{more})"


def _is_finite(array: np.ndarray) -> bool:
    try:
        return bool(np.isfinite(array).all())
    except TypeError:  # text or objects
        return False


def one_or_each(value) -> tuple:
    """Returns a number or a list of numbers as a tuple."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def plain(values: tuple):
    """Returns a tuple as a list, or the number if it has one: inverts `one_or_each`."""
    return list(values) if len(values) > 1 else values[0]


def same_or_each(value) -> tuple:
    """Returns what `one_or_each` does; a list of equal numbers becomes one."""
    values = one_or_each(value)
    return values[:1] if len(set(values)) == 1 else values


@contextlib.contextmanager
def readable_errors():
    """Raises ValueError if a section of config.yaml lacks a field or is malformed.

    Decorates functions that read a section.
    """
    try:
        yield
    except KeyError as error:
        raise ValueError(f"the arch section of config.yaml has no {error}") from None
    except (TypeError, AttributeError) as error:
        raise ValueError(f"the arch section of config.yaml: {error}") from None
