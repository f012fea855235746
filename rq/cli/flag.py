# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Declares the flags of commands."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable
from typing import Any

from absl import flags

# By type: absl's function that defines such a flag, and the value's name in the help.
_TYPES: dict[type, tuple[Callable, str]] = {
    str: (flags.DEFINE_string, "STRING"),
    int: (flags.DEFINE_integer, "INTEGER"),
    float: (flags.DEFINE_float, "FLOAT"),
    bool: (flags.DEFINE_bool, ""),
    list: (flags.DEFINE_list, "A,B,..."),
    tuple: (flags.DEFINE_multi_string, "STRING"),
}


@dataclasses.dataclass(frozen=True)
class Flag:
    """Declares one flag of a command.

    Attributes:
      name: name of the flag, without dashes.
      help: meaning, in one phrase.
      default: value if the flag is not given.
      type: str, int, float, bool, list (separated by commas), or tuple (the flag may be
        given several times).
      choices: allowed values; empty if all are.
      minimum: smallest allowed integer.
    """

    name: str
    help: str
    default: Any = None
    type: type = str
    choices: tuple[str, ...] = ()
    minimum: int | None = None

    def define(self, values: flags.FlagValues) -> None:
        """Adds the flag to `values`."""
        options: dict[str, Any] = {"flag_values": values}
        if self.choices:
            flags.DEFINE_enum(
                self.name, self.default, self.choices, self.help, **options
            )
            return
        if self.minimum is not None:
            options["lower_bound"] = self.minimum
        _TYPES[self.type][0](self.name, self.default, self.help, **options)

    def usage(self) -> str:
        """Returns the lines of `--help` for this flag."""
        value, text = "|".join(self.choices) or _TYPES[self.type][1], self.help
        if self.default not in (None, False, "", []):
            text = f"{text} (default: {self.default})"
        return textwrap.fill(
            f"{f'--{self.name}={value}'.removesuffix('='):24}  {text}",
            width=88,
            initial_indent="  ",
            subsequent_indent=" " * 28,
        )
