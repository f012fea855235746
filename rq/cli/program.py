# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The program `rq`: finds the command, parses its flags, runs it."""

from __future__ import annotations

import difflib
import importlib
import sys
import textwrap
from collections.abc import Sequence

from absl import flags, logging

import rq
from rq.cli import exits
from rq.config import ConfigError, parse_with_config
from rq.config.command_line import one_line

COMMANDS = {  # the first lines of their modules' docstrings
    "train": "Trains the stages of a config, or goes on with a run.",
    "prepare": "Prepares a data set, and prints what is in it.",
    "tokenizer": "Makes the tokenizer of a config's captions.",
    "encode": "Stores the codes of a data set, by a trained RQ-VAE.",
    "sample": "Generates images.",
    "reconstruct": "Draws images beside their reconstructions by depth.",
    "evaluate": "Measures a run, images that it generates, or any images.",
    "rank": "Ranks classes or texts by the likelihood of images under them.",
    "check": "Checks all files of a run's checkpoints against their checksums.",
    "convert": "Converts weights of frozen networks to files that rq reads.",
    "aot": "Compiles a config's program for TPUs without having any.",
}


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command; ends with its exit code.

    Args:
      args: the command line after the program's name; that of this process where None.
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


def run(name: str, args: Sequence[str]) -> None:
    """Runs a command of `COMMANDS` with its arguments; exits unless it succeeds."""
    command = importlib.import_module(f"rq.cli.{name}")
    values = flags.FlagValues()
    command.define(values)
    flags.DEFINE_bool(
        "debug", False, "prints the traceback of an error", flag_values=values
    )
    if {"-h", "--help"} & set(args):
        print(_help(name, command, values))
        return
    try:
        rest = _parse(command, values, ["rq", *args])[1:]
        _take_positional(command, values, rest)
    except (ConfigError, flags.Error) as error:
        exits.print_error(one_line(error), "--debug" in args)
        sys.exit(2)
    flags.FLAGS.mark_as_parsed()  # libraries read theirs: those have their defaults
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    with exits.exit_codes(values.debug):
        code = command.run(values)
    if code:
        sys.exit(code)


def _parse(command, values, args) -> list[str]:
    config = getattr(command, "CONFIG", None)
    if config is None:
        return values(args)
    return parse_with_config(values, args, overrides_alone=config == "directory")


def _take_positional(command, values, rest: Sequence[str]) -> None:
    """Stores the argument that is no flag in the flag that it stands for."""
    name = getattr(command, "POSITIONAL", None)
    if len(rest) > (name is not None):
        raise ConfigError(f"unexpected arguments: {' '.join(rest[name is not None :])}")
    if rest and values[name].present and values[name].value != rest[0]:
        raise ConfigError(f"{rest[0]} is not --{name}={values[name].value}: give one")
    if rest:
        values[name].parse(rest[0])


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "rq train --config=configs/digits.py --workdir=runs/digits",
            "",
            *lines,
            "",
            "rq COMMAND --help lists the flags of a command.",
        ]
    )


def _help(name: str, command, values: flags.FlagValues) -> str:
    """Returns an example, what the command does, and its flags."""
    first, _, rest = command.__doc__.partition("\n\n")
    example, _, rest = rest.partition("\n\n")
    text = [textwrap.dedent(example).rstrip(), "", first, ""]
    if rest.strip():
        text += [rest.rstrip(), ""]
    for flag in values:
        text += _flag_help(values[flag])
    if getattr(command, "CONFIG", None) == "file":
        text.append("  --config=FILE[:VARIANT]   settings, see configs/")
    if hasattr(command, "CONFIG"):
        text.append(
            "  --config.FIELD=VALUE      another value of a field, see docs/config.md"
        )
    return "\n".join(text)


def _flag_help(flag) -> list[str]:
    words, text = flag.flag_type(), flag.help
    if choices := getattr(flag.parser, "enum_values", None):
        words, text = "|".join(choices), text.partition(">: ")[2]
    elif "list" in words:
        words = "A,B,..."
    else:  # of 'multi string' one is given at a time
        words, text = words.split()[-1].upper(), text.partition(";\n")[0]
    name = f"--{flag.name}" if flag.boolean else f"--{flag.name}={words}"
    if flag.default not in (None, False, "", []):
        text = f"{text} (default: {flag.default})"
    return textwrap.wrap(
        f"{name:24}  {text}",
        width=88,
        initial_indent="  ",
        subsequent_indent=" " * 28,
    )
