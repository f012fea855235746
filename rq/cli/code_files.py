# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""What `rq compress` and `rq decompress` have in common."""

from __future__ import annotations

import pathlib

import rq
from rq.cli import compilation_cache, run_flags
from rq.cli.flag import Flag
from rq.config import ConfigError

FLAGS = (
    Flag("model", "run directory, saved folder, or a model that comes with rq"),
    Flag("out", "folder to write to; by default that of each file"),
    run_flags.STEP,
    run_flags.DTYPE,
)


def load(values, command: str) -> rq.Model:
    """Returns the model of `--model`."""
    if values.model is None:
        raise ConfigError(f"rq {command} needs --model=MODEL, such as --model=emoji")
    compilation_cache.enable()
    return rq.load(values.model, step=values.step, dtype=values.dtype)


def outputs(values, command: str, name) -> dict[pathlib.Path, pathlib.Path]:
    """Returns the file to write for each file that was given.

    Args:
      values: the flags.
      command: its name.
      name: function of the path that was given to the name of the file to write.

    Raises:
      ConfigError: if there are none, or two would be written to one.
    """
    if not values.files:
        raise ConfigError(f"rq {command} needs files: rq {command} FILE…")
    paths = [pathlib.Path(file).expanduser() for file in values.files]
    found = {}
    for path in paths:
        folder = pathlib.Path(values.out).expanduser() if values.out else path.parent
        found[path] = folder / name(path)
    if len(set(found.values())) < len(paths):
        raise ConfigError("two of the files would be written to one: rename one")
    if values.out:
        pathlib.Path(values.out).expanduser().mkdir(parents=True, exist_ok=True)
    return found
