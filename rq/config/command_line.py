# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Parses flags with `--config` and `--config.FIELD=VALUE`; errors of one line."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterable, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from rq.config.errors import ConfigError
from rq.config.schema import FIELDS, default
from rq.config.validation import unknown_field, validate

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)(?:=.*)?", re.DOTALL)
_BAD_OVERRIDE = re.compile(r"flag --(?:no)?config\.([^=]+)=(.*?): ", re.DOTALL)
_CONFIG_FILE = re.compile(r"--?config(?:=(.*))?$", re.DOTALL)


def flags_parser(args: Sequence[str]) -> list[str]:
    """Parses flags, for `absl.app.run(main, flags_parser=flags_parser)`.

    For programs that define their flag `config` by
    `ml_collections.config_flags.DEFINE_config_file`. A mistake in flags, overrides or
    the config file is printed in one line, and ends the program with exit code 2.

    Args:
      args: the command line, program name first.

    Returns:
      The arguments that are no flags, program name first.
    """
    try:
        return parse(flags.FLAGS, args)
    except (ConfigError, flags.Error) as error:
        print("error: " + one_line(error), file=sys.stderr)
        sys.exit(2)


def parse_with_config(
    values: flags.FlagValues, args: Sequence[str], overrides_alone: bool = False
) -> list[str]:
    """Defines `--config` and its overrides as flags of `values`, and parses.

    Afterwards `values.config` is the validated config of `--config`, or None; the
    overrides are in `values["config"].override_values`.

    Args:
      values: flags of the program.
      args: the command line, program name first.
      overrides_alone: whether `--config.FIELD=VALUE` may stand without `--config`; then
        `values.config` is the default with these overrides.

    Raises:
      ConfigError, absl.flags.Error: on a mistake in flags, overrides or config file.
    """
    args, options = list(args), {"flag_values": values}
    known = _overrides(args)
    if not (overrides_alone and _config_file(args) is None):
        define, start = config_flags.DEFINE_config_file, None
        text = "config file, with a variant after a colon"
    else:
        define, start = config_flags.DEFINE_config_dict, default()
        text = "not needed: the run directory has its config"

    def define_config():
        define("config", start, text, lock_config=True, sys_argv=args, **options)

    rest = parse(values, args, define_config)
    if start is not None:
        overridden = values["config"].override_values
        for name in known:
            FIELDS[name].check(name, overridden[name])
    return rest


def parse(values, args: Sequence[str], define_config=lambda: None) -> list[str]:
    """Parses flags, one of which is `config`; see `parse_with_config`."""
    for name in _overrides(args):
        if name not in FIELDS:
            raise unknown_field(name)
    path = _config_file(args)
    if path and not os.path.isfile(path):
        raise ConfigError(f'config file "{path}" does not exist')
    try:
        define_config()
        rest = values(args)
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
        raise ConfigError(f"{_place(path, frames)}: {one_line(error)}") from None
    if path:
        config = values["config"].value
        if not isinstance(config, ConfigDict):
            kind = type(config).__name__
            raise ConfigError(f'get_config of "{path}" returned {kind}, no ConfigDict')
        validate(config)
    return rest


def _overrides(args: Sequence[str]) -> list[str]:
    """Returns the dotted names of the fields that the command line sets."""
    found = (_OVERRIDE.fullmatch(arg) for arg in args)
    return [match[1] for match in found if match]


def _config_file(args: Sequence[str]) -> str | None:
    """Returns the path of the config file, without its variant."""
    path = None
    for i, arg in enumerate(args):
        if match := _CONFIG_FILE.match(arg):
            path = match[1] if match[1] is not None else "".join(args[i + 1 : i + 2])
    return path and path.split(":", 1)[0]


def _place(path: str, frames: Iterable[tuple[str, int | str]]) -> str:
    """Returns 'FILE, line N': where the error left the config file."""
    here = [n for name, n in frames if os.path.abspath(name) == os.path.abspath(path)]
    return f"{path}, line {here[-1]}" if here else path


def one_line(error: BaseException) -> str:
    """Returns an error's text in one line."""
    # A locked ConfigDict goes on to print all that it holds.
    text = re.sub(r"\. Other fields present:.*", "", str(error), flags=re.DOTALL)
    return " ".join(text.split()).removeprefix("'")
