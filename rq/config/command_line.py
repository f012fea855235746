# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Parses `--config` and `--config.FIELD=VALUE`; every error is one line."""

from __future__ import annotations

import os
import pathlib
import re
import traceback
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from rq.config import config_file
from rq.config.errors import ConfigError
from rq.config.schema import FIELDS, default
from rq.config.stored import read
from rq.config.validation import unknown_field, validate

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)(?:=.*)?", re.DOTALL)
_BAD_OVERRIDE = re.compile(r"flag --(?:no)?config\.([^=]+)=(.*?): ", re.DOTALL)
_CONFIG_FILE = re.compile(r"--?config(?:=(.*))?$", re.DOTALL)


def parse_with_config(
    values: flags.FlagValues, args: Sequence[str], overrides_alone: bool = False
) -> list[str]:
    """Adds `--config` and its overrides to the flags `values`, and parses `args`.

    Afterwards `values.config` is the validated config of `--config`, or None; the
    overrides are in `values["config"].override_values`. `--config` is a Python file, or
    a stored `config.json` or the folder of one; see `config_file.find`.

    Args:
      values: flags of the program.
      args: the command line, program name first.
      overrides_alone: accept `--config.FIELD=VALUE` without `--config`; then
        `values.config` is the default config with these overrides.

    Returns:
      The arguments that are not flags, program name first.

    Raises:
      ConfigError, absl.flags.Error: on an error in flags, overrides or config file, or
        if there is no such config; see `config_file.find`.
    """
    args, path = _find_config(args)
    names = _overrides(args)
    for name in names:
        if name not in FIELDS:
            raise unknown_field(name)
    stored = path if path and path.endswith(config_file.STORED) else None
    if stored and overrides_alone:
        raise ConfigError(f"--config={path}: this command reads that of its run")
    overrides_alone = overrides_alone and path is None
    base = default() if overrides_alone else None
    if stored:
        base, args = read(pathlib.Path(stored)), _without_config_file(args)
    options: dict[str, Any] = dict(lock_config=True, sys_argv=args, flag_values=values)
    try:
        if base is not None:
            config_flags.DEFINE_config_dict("config", base, **options)
        else:
            config_flags.DEFINE_config_file("config", **options)
        rest = values(args)
    except flags.IllegalFlagValueError as error:
        raise _bad_value(error, path) from None
    except AttributeError as error:  # a misspelt field, set in the config file
        if not path:
            raise
        trace = traceback.extract_tb(error.__traceback__)
        frames = [(frame.filename, frame.lineno) for frame in trace]
        raise ConfigError(f"{_place(path, frames)}: {one_line(error)}") from None
    if overrides_alone:
        flag: Any = values["config"]
        for name in names:
            FIELDS[name].check(name, flag.override_values[name])
    if path:
        config = values["config"].value
        if not isinstance(config, ConfigDict):
            kind = type(config).__name__
            raise ConfigError(f'get_config of "{path}" returned {kind}, no ConfigDict')
        validate(config)
    return rest


def _bad_value(error: flags.IllegalFlagValueError, path) -> Exception:
    """Returns a short error for a bad override or a config file that fails."""
    bad = _BAD_OVERRIDE.match(str(error))
    if bad and bad[1] in FIELDS:
        return ConfigError(f'{bad[1]} = "{bad[2]}": must be {FIELDS[bad[1]].type}')
    if "Error whilst parsing config file" not in str(error):
        return error
    # The library put the config file's traceback into the text.
    frames = re.findall(r'File "(.+?)", line (\d+)', str(error))
    problem = re.sub(r"^[\w.]+: ", "", str(error).rstrip().splitlines()[-1])
    return ConfigError(f"{_place(path, frames)}: {problem}")


def _overrides(args: Sequence[str]) -> list[str]:
    """Returns the dotted names of the fields that the command line sets."""
    found = (_OVERRIDE.fullmatch(arg) for arg in args)
    return [match[1] for match in found if match]


def _find_config(args: Sequence[str]) -> tuple[list[str], str | None]:
    """Returns the arguments with the config as a path, and the path without variant.

    Raises:
      ConfigError: if there is no such config.
    """
    args, path = list(args), None
    for i, arg in enumerate(args):
        if not (match := _CONFIG_FILE.match(arg)):
            continue
        at = i + 1 if match[1] is None else i
        value = "".join(args[at : at + 1]) if match[1] is None else match[1]
        path, colon, variant = value.partition(":")
        if path:
            path = config_file.find(path)
            args[at] = f"{args[at].removesuffix(value)}{path}{colon}{variant}"
    return args, path


def _without_config_file(args: Sequence[str]) -> list[str]:
    """Returns the arguments without `--config=FILE` or `--config FILE`."""
    kept, rest = [], iter(args)
    for arg in rest:
        match = _CONFIG_FILE.match(arg)
        if match and match[1] is None:
            next(rest)
        elif not match:
            kept.append(arg)
    return kept


def _place(path: str, frames: Iterable[tuple[str, int | str | None]]) -> str:
    """Returns 'FILE, line N' for the last frame in the config file."""
    here = [n for name, n in frames if os.path.abspath(name) == os.path.abspath(path)]
    return f"{path}, line {here[-1]}" if here else path


def one_line(error: BaseException) -> str:
    """Returns an error's text in one line."""
    # A locked ConfigDict appends a list of all its fields.
    text = re.sub(r"\. Other fields present:.*", "", str(error), flags=re.DOTALL)
    return " ".join(text.split()).removeprefix("'")
