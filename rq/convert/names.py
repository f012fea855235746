# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""What both converters share: a state dict that notes what was taken from it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from absl import logging


class StateDict:
    """Hands out arrays by name with their shape checked, and lists what is left."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._arrays, self._left = arrays, set(arrays)

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def take(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """The array of that name.

        Raises:
          ValueError: where there is none, or of another shape.
        """
        if name not in self._arrays:
            raise ValueError(f"the state dict has no {name!r}")
        array = np.asarray(self._arrays[name])
        if shape is not None and array.shape != tuple(shape):
            raise ValueError(f"{name} has shape {array.shape}, expected {tuple(shape)}")
        self._left.discard(name)
        return array

    def finish(self) -> None:
        """Warns of names that nothing asked for."""
        if self._left:
            logging.warning(
                "unused in the state dict: %s", ", ".join(sorted(self._left))
            )


def one_or_each(value) -> tuple:
    """A number or a list of numbers to a tuple."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def same_or_each(value) -> tuple:
    """As `one_or_each`; a list of equal numbers becomes one."""
    values = one_or_each(value)
    return values[:1] if len(set(values)) == 1 else values
