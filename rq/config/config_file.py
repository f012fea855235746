# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds the file of `--config`: a path, or the name of a config that comes with rq."""

from __future__ import annotations

import difflib
import os
import pathlib

from rq.config.errors import ConfigError

STORED = ".json"  # the end of the name of a config that a run or a saved model has
_PACKAGE = pathlib.Path(__file__).parents[1]


def folder() -> pathlib.Path:
    """Returns the folder of the configs that come with rq.

    A wheel has them inside the package, and a clone beside it.
    """
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def names() -> list[str]:
    """Returns the sorted names of the configs that come with rq."""
    return sorted(path.stem for path in folder().glob("*.py"))


def find(text: str) -> str:
    """Returns the path of a config file that exists.

    Args:
      text: a path, which has a `/` or ends in `.py` or `.json`, or else one of `names`;
        of a folder, such as a run directory, its config.json is taken; NAME/config.json
        may be that of a model that comes with rq.

    Raises:
      ConfigError: if there is no such file or name.
    """
    known, suggestion = names(), ""
    if os.path.isdir(text) and text not in known:
        text = os.path.join(text, f"config{STORED}")
    if os.sep not in text and not text.endswith((".py", STORED)):
        if text in known:
            return str(folder() / f"{text}.py")
        if close := difflib.get_close_matches(text, known, 1):
            suggestion = f'did you mean "{close[0]}"? '
        raise ConfigError(
            f'unknown config "{text}"; {suggestion}rq has {", ".join(known)}; '
            "a file of your own ends in .py"
        )
    if os.path.isfile(text):
        return text
    if text.endswith(STORED) and (shipped := _PACKAGE / "shipped" / text).is_file():
        return str(shipped)
    if (name := pathlib.Path(text).stem) in known:
        suggestion = f"; --config={name} is the one that comes with rq"
    raise ConfigError(f'config file "{text}" does not exist{suggestion}')
