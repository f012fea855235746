# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The command line: mistakes in `--config` and its overrides, one line each."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterable, Sequence

from absl import flags
from ml_collections import ConfigDict

from rq.config.errors import ConfigError
from rq.config.schema import FIELDS
from rq.config.validation import unknown_field, validate

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)(?:=.*)?", re.DOTALL)
_BAD_OVERRIDE = re.compile(r"flag --(?:no)?config\.([^=]+)=(.*?): ", re.DOTALL)
_CONFIG_FILE = re.compile(r"--?config(?:=(.*))?$", re.DOTALL)


def flags_parser(args: Sequence[str]) -> list[str]:
    """Parses flags, for `absl.app.run(main, flags_parser=flags_parser)`.

    Expects the program to define its flag `config` with
    `ml_collections.config_flags.DEFINE_config_file`. A config that was given is
    validated; none need be. On a mistake of the user's in flags, overrides or the
    config file: one line on stderr, and exit status 2.

    Args:
      args: the command line, program name first.

    Returns:
      What is left of it, program name first.
    """
    try:
        return _parse(args)
    except (ConfigError, flags.Error) as error:
        print("error: " + _line(error), file=sys.stderr)
        sys.exit(2)


def _parse(args: Sequence[str]) -> list[str]:
    for name in _overrides(args):
        if name not in FIELDS:
            raise unknown_field(name)
    path = _config_file(args)
    if path and not os.path.isfile(path):
        raise ConfigError(f'config file "{path}" does not exist')
    try:
        rest = flags.FLAGS(args)
    except flags.IllegalFlagValueError as error:
        bad = _BAD_OVERRIDE.match(str(error))
        if bad and bad[1] in FIELDS:
            kind = FIELDS[bad[1]].type
            raise ConfigError(f'{bad[1]} = "{bad[2]}": must be {kind}') from None
        if "Error whilst parsing config file" not in str(error):
            raise
        # The library put the traceback of what the config file raised into the text.
        frames = re.findall(r'File "(.+?)", line (\d+)', str(error))
        problem = re.sub(r"^[\w.]+: ", "", str(error).rstrip().splitlines()[-1])
        raise ConfigError(f"{_place(path, frames)}: {problem}") from None
    except AttributeError as error:  # a misspelt field, set in the config file
        if not path:
            raise
        trace = traceback.extract_tb(error.__traceback__)
        frames = [(frame.filename, frame.lineno) for frame in trace]
        raise ConfigError(f"{_place(path, frames)}: {_line(error)}") from None
    config = flags.FLAGS["config"].value
    if path and not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise ConfigError(f'get_config of "{path}" returned {kind}, no ConfigDict')
    if config is not None:
        validate(config)
    return rest


def _overrides(args: Sequence[str]) -> list[str]:
    """Dotted names of the fields that the command line sets."""
    found = (_OVERRIDE.fullmatch(arg) for arg in args)
    return [match[1] for match in found if match]


def _config_file(args: Sequence[str]) -> str | None:
    """Path of the config file, without its variant."""
    path = None
    for i, arg in enumerate(args):
        if match := _CONFIG_FILE.match(arg):
            path = match[1] if match[1] is not None else "".join(args[i + 1 : i + 2])
    return path and path.split(":", 1)[0]


def _place(path: str, frames: Iterable[tuple[str, int | str]]) -> str:
    """'FILE, line N': where the error left the config file."""
    here = [n for name, n in frames if os.path.abspath(name) == os.path.abspath(path)]
    return f"{path}, line {here[-1]}" if here else path


def _line(error: Exception) -> str:
    """An error's text in one line."""
    # A locked ConfigDict goes on to print all that it holds.
    text = re.sub(r"\. Other fields present:.*", "", str(error), flags=re.DOTALL)
    return " ".join(text.split()).removeprefix("'")
