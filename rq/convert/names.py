# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks the names, shapes and values of PyTorch state dicts."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping

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
    """Checks the shapes and values of arrays that are taken by name."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        """Takes arrays by their PyTorch names, `unwrapped`."""
        arrays = unwrapped(arrays)
        self._arrays, self._left, self._finite = arrays, set(arrays), set()

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def require(self, names: Collection[str]) -> None:
        """Checks that all of `names` are there, and that their numbers are finite.

        Raises:
          ValueError: with the number of names at fault and the first few.
        """
        missing = [name for name in names if name not in self._arrays]
        if missing:
            others = sorted(map(str, self._left.difference(names)))
            hint = f"; it has {few(others)} instead" if others else ""
            if len(missing) == 1:
                raise ValueError(f"the state dict has no {missing[0]!r}{hint}")
            raise ValueError(
                f"the state dict lacks {few(missing)} of {len(names)} names{hint}"
            )
        bad = [name for name in names if not _is_finite(self._arrays[name])]
        if bad:
            raise ValueError(f"NaN, infinite or no numbers at all in {few(bad)}")
        self._finite.update(names)

    def take(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """Returns the array of that name.

        Raises:
          ValueError: if there is none, of another shape, or with NaN or infinite
            numbers.
        """
        if name not in self._finite:
            self.require([name])
        array = np.asarray(self._arrays[name])
        if shape is not None and array.shape != tuple(shape):
            raise ValueError(f"{name} has shape {array.shape}, expected {tuple(shape)}")
        self._left.discard(name)
        return array

    def finish(self) -> None:
        """Warns of names that nothing asked for."""
        if self._left:
            logging.warning("unused in the state dict: %s", few(sorted(self._left)))


def few(names: Collection[str]) -> str:
    """Returns the number of names and the first few, for messages."""
    names = [str(name)[:80] for name in names]
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} ({', '.join(names[:_SHOWN])}{more})"


def _is_finite(array) -> bool:
    try:
        return bool(np.isfinite(np.asarray(array)).all())
    except (TypeError, ValueError):  # text, objects, or lists of unequal length
        return False


def one_or_each(value) -> tuple:
    """Returns a number or a list of numbers as a tuple."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


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
