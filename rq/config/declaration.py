# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Declares a field of the config: default, range, meaning, commands that change it."""

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
      contains: returns whether a value, or an element of a tuple, is in the range.
      text: the range in words that follow "must be"; '' if every value is allowed.
    """

    contains: Callable[[Any], bool]
    text: str

    def check(self, name: str, value) -> None:
        """Raises ConfigError if a value, or an element of a tuple, is out of range."""
        if not all(map(self.contains, value if isinstance(value, tuple) else (value,))):
            raise ConfigError(f"{name} = {value!r}: must be {self.text}")


ANY = Range(lambda x: True, "")
POSITIVE = Range(lambda x: x > 0, "positive")
SEVERAL = Range(lambda x: x > 1, "2 or more")
NOT_NEGATIVE = Range(lambda x: x >= 0, "0 or more")
BELOW_ONE = Range(lambda x: 0 <= x < 1, "within [0, 1)")
FRACTION = Range(lambda x: 0 <= x <= 1, "within [0, 1]")
PROBABILITY = Range(lambda x: 0 < x <= 1, "within (0, 1]")
NOT_EMPTY = Range(bool, "non-empty")
# JAX makes random keys of 32 bits: larger seeds would repeat smaller ones.
SEED = Range(lambda x: 0 <= x < 2**32, "within [0, 2**32)")


def one_of(*choices) -> Range:
    """Returns the range that contains these values only."""
    return Range(lambda x: x in choices, f"one of {', '.join(map(repr, choices))}")


DTYPE = one_of("float32", "bfloat16")

# Commands that open a run directory. Each accepts overrides of the fields that list it
# in `changed_by`.
RUN_COMMANDS = ("encode", "sample", "reconstruct", "evaluate", "rank")


@dataclasses.dataclass(frozen=True)
class Field:
    """Declares one field of the config.

    Attributes:
      default: value of the field if none is set. Its type is the field's type; a tuple
        may have any number of elements of the type of its first.
      doc: meaning of the field, in one line.
      range: allowed values.
      since: version of rq that added the field.
      changed_by: commands that may change the field in an existing run directory; empty
        if it is fixed by the first training. Fields that `train` may change do not
        affect the trained weights, except for rounding.
      before: value that runs from before the field were trained with. None if there are
        no such runs, or if `train` may change the field: then they get the default.
      was: name of the field in the same section in version 0.1, if it differed.
      or_tuple: a tuple of the default's type is allowed as well; which lengths are is
        for the rules of `rq.config.validation`.
    """

    default: Any
    doc: str
    range: Range = ANY
    since: str = "0.1"
    changed_by: tuple[str, ...] = ()
    before: Any = None
    was: str = ""
    or_tuple: bool = False

    @property
    def changeable(self) -> bool:
        """Whether training may continue with another value."""
        return "train" in self.changed_by

    @property
    def type(self) -> str:
        """The field's type in words that follow "must be"."""
        if isinstance(self.default, tuple):
            return f"a tuple of {type(self.default[0]).__name__}"
        names = {bool: "true or false", str: "a string", float: "a finite number"}
        name = names.get(type(self.default), "an integer")
        kind = type(self.default).__name__
        return f"{name} or a tuple of {kind}" if self.or_tuple else name

    def check_type(self, name: str, value) -> None:
        """Raises ConfigError if a value does not have the field's type."""
        examples = [self.default, (self.default,)] if self.or_tuple else [self.default]
        if not any(_has_type(value, example) for example in examples):
            raise ConfigError(f"{name} = {value!r}: must be {self.type}")

    def check(self, name: str, value) -> None:
        """Raises ConfigError if a value has another type or is out of range."""
        self.check_type(name, value)
        self.range.check(name, value)


def changed_by(commands: tuple[str, ...], **section: Field) -> dict[str, Field]:
    """Returns a section of fields that `commands` may change in a run directory."""
    return {
        name: dataclasses.replace(field, changed_by=commands)
        for name, field in section.items()
    }


def _has_type(value, example) -> bool:
    if isinstance(example, tuple):
        is_tuple = isinstance(value, tuple)
        return is_tuple and all(_has_type(v, example[0]) for v in value)
    if isinstance(example, float):
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is type(example)
