# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs the program `rq`: finds the command, parses its flags, calls it."""

from __future__ import annotations

import difflib
import importlib
import sys
import textwrap
from collections.abc import Sequence

from absl import flags

import rq
from rq.cli import exits, log_output
from rq.cli.flag import Flag
from rq.config import ConfigError, parse_with_config
from rq.config.command_line import one_line

COMMANDS = {  # the first lines of their modules' docstrings, listed without importing
    "train": "Trains the stages of a config, or resumes a run.",
    "prepare": "Prepares a data set and prints a summary of it.",
    "tokenizer": "Makes the tokenizer for a config's captions.",
    "encode": "Encodes a data set with a trained RQ-VAE and stores the codes.",
    "sample": "Generates images.",
    "reconstruct": "Shows images and their reconstructions by depth.",
    "evaluate": "Measures a run, images that it generates, or any images.",
    "compress": "Writes small files of images' codes, entropy-coded by a model's "
    "predictions.",
    "decompress": "Makes images of the files of `rq compress`.",
    "suggest-codebook": "Suggests codebook sizes from how a run uses its codes.",
    "rank": "Ranks classes or texts by the likelihood of given images.",
    "demo": "Shows a model on a web page.",
    "check": "Checks all files of a run's checkpoints against their checksums.",
    "convert": "Converts models and weights from PyTorch, and back.",
    "aot": "Compiles a config's program for TPUs or GPUs, without having one.",
}
DEBUG = Flag("debug", "print raw logs, and tracebacks of errors", False, bool)


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command and exits with its code.

    Args:
      args: the command line after the program's name; None: that of this process.
    """
    args = list(sys.argv[1:] if args is None else args)
    name = args[0] if args else "--help"
    if name in ("-h", "--help", "help"):
        print(_overview())
    elif name == "--version":
        print(rq.__version__)
    elif name in COMMANDS:
        run(name, args[1:])
    else:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(COMMANDS)}"
        print(f"error: unknown command {name!r}; {hint}", file=sys.stderr)
        sys.exit(2)


def module(name: str):
    """Returns the module of a command of `COMMANDS`."""
    return importlib.import_module(f"rq.cli.{name.replace('-', '_')}")


def run(name: str, args: Sequence[str]) -> None:
    """Runs a command of `COMMANDS` with its arguments; exits unless it succeeds."""
    command = module(name)
    if {"-h", "--help"} & set(args):
        print(_help(command))
        return
    try:
        values = parse(command, args)
    except (ConfigError, flags.Error) as error:
        exits.print_error(one_line(error), "--debug" in args)
        sys.exit(2)
    flags.FLAGS.mark_as_parsed()  # libraries read their own flags, at their defaults
    log_output.start(values.debug)
    with exits.exit_codes(values.debug):
        code = command.run(values)
    if code:
        sys.exit(code)


def parse(command, args: Sequence[str]) -> flags.FlagValues:
    """Returns the flags of a command's module, parsed from its arguments.

    Raises:
      ConfigError, absl.flags.Error: on an error in the arguments.
    """
    values = flags.FlagValues()
    for flag in (*command.FLAGS, DEBUG):
        flag.define(values)
    args, config = ["rq", *args], getattr(command, "CONFIG", None)
    if config is None:
        rest = values(args)[1:]
    else:
        alone = config == "directory"
        rest = parse_with_config(values, args, overrides_alone=alone)[1:]
    name = getattr(command, "POSITIONAL", "")
    if any(flag.name == name and flag.type is tuple for flag in command.FLAGS):
        if rest:
            values[name].parse(rest)
        return values
    if len(rest) > bool(name):
        raise ConfigError(f"unexpected arguments: {' '.join(rest[bool(name) :])}")
    if rest and values[name].present and values[name].value != rest[0]:
        raise ConfigError(f"{rest[0]} is not --{name}={values[name].value}: give one")
    if rest:
        values[name].parse(rest[0])
    return values


def _overview() -> str:
    commands = "\n".join(f"  {name:16}  {text}" for name, text in COMMANDS.items())
    return (
        f"rq train --config=digits --workdir=runs/digits\n\n{commands}\n\n"
        "rq COMMAND --help lists the flags of a command."
    )


def _help(command) -> str:
    """Returns an example, what the command does, and its flags."""
    first, _, rest = command.__doc__.partition("\n\n")
    example, _, rest = rest.partition("\n\n")
    text = [textwrap.dedent(example).rstrip(), "", first, ""]
    if rest.strip():
        text += [rest.rstrip(), ""]
    text += [flag.usage() for flag in (*command.FLAGS, DEBUG)]
    if getattr(command, "CONFIG", None) == "file":
        text.append(
            "  --config=NAME[:VARIANT]   settings that come with rq, or FILE.py"
        )
    if hasattr(command, "CONFIG"):
        text.append("  --config.FIELD=VALUE      override a field, see docs/config.md")
    return "\n".join(text)
