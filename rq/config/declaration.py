# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""How a field of the config is declared: default, range, meaning, who may change it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from rq.config.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a field may have.

    Attributes:
      contains: whether a value is one of them; given each element of a tuple.
      text: which they are, as in "must be positive"; '' where every value is.
      problem: the error message; "must be" and `text` where empty.
    """

    contains: Callable[[Any], bool]
    text: str
    problem: str = ""

    def check(self, name: str, value) -> None:
        """Raises ConfigError where a value, or an element of a tuple, is outside."""
        for element in value if isinstance(value, tuple) else (value,):
            if not self.contains(element):
                problem = self.problem or f"must be {self.text}"
                raise ConfigError(f"{name} = {value!r}: {problem}")


ANY = Range(lambda x: True, "")
POSITIVE = Range(lambda x: x > 0, "positive")
NOT_NEGATIVE = Range(lambda x: x >= 0, "0 or more", "must not be negative")
BELOW_ONE = Range(lambda x: 0 <= x < 1, "within [0, 1)")
FRACTION = Range(lambda x: 0 <= x <= 1, "within [0, 1]")
PROBABILITY = Range(lambda x: 0 < x <= 1, "within (0, 1]")
NOT_EMPTY = Range(bool, "any text but ''", "must not be empty")
# JAX makes random keys of 32 bits: larger seeds would repeat smaller ones.
SEED = Range(
    lambda x: 0 <= x < 2**32,
    "within [0, 2**32)",
    "must not be negative, and be below 2**32",
)


def one_of(*choices) -> Range:
    """Returns the range of a field that has these values only."""
    words = ", ".join(repr(choice) for choice in choices)
    return Range(lambda x: x in choices, f"one of {words}")


# Commands that open a run directory, and take the fields that say so of themselves as
# overrides of its config.
RUN_COMMANDS = ("encode", "sample", "reconstruct", "evaluate", "rank")


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of the config.

    Attributes:
      default: its value where nothing else is said; its type is the field's, a tuple
        having any number of elements of the type of its first.
      doc: what it means, in one line.
      range: of its values.
      since: the version of rq that added it.
      changed_by: commands that may change it in an existing run directory. Those of
        `train` change no trained weights (but for the rounding of sums in another
        order). Empty: fixed by the first training.
      before: the value in force in runs that are older than the field; None where
        there are none, or where `train` may change it, which leaves the default.
      was: its name in the same section in runs of version 0.1, where it had another.
    """

    default: Any
    doc: str
    range: Range = ANY
    since: str = "0.1"
    changed_by: tuple[str, ...] = ()
    before: Any = None
    was: str = ""

    @property
    def changeable(self) -> bool:
        """Whether training may go on with another value."""
        return "train" in self.changed_by

    def accepts(self, value) -> bool:
        """Returns whether a value has the type of the field."""
        return _has_type(value, self.default)

    @property
    def type(self) -> str:
        """Its type in words."""
        if isinstance(self.default, tuple):
            return f"a tuple of {type(self.default[0]).__name__}"
        names = {bool: "true or false", str: "a string", float: "a finite number"}
        return names.get(type(self.default), "an integer")

    def check(self, name: str, value) -> None:
        """Raises ConfigError where a value has another type or is out of range."""
        if not self.accepts(value):
            raise ConfigError(f"{name} = {value!r}: must be {self.type}")
        self.range.check(name, value)


def _has_type(value, example) -> bool:
    if isinstance(example, tuple):
        is_tuple = isinstance(value, tuple)
        return is_tuple and all(_has_type(v, example[0]) for v in value)
    if isinstance(example, float):
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is type(example)
