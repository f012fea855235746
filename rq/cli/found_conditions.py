# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds out what stage 2 can be conditioned on, for `transformer.condition='auto'`."""

from __future__ import annotations

from etils import epath
from ml_collections import ConfigDict

from rq.config import from_json, validate
from rq.data import given_codes, sources
from rq.experiment import CONFIG
from rq.parallel import processes

CAPTIONED = 0.5  # fraction of images with captions from which on these are used


def resolve(config: ConfigDict, path: epath.Path) -> ConfigDict:
    """Returns the config of a run with the condition that its data have.

    What was found at the start of the run stays, even if the data are prepared again.
    Process 0 prints what was found.

    Raises:
      DataError: if the data set is not prepared.
    """
    if config.transformer.condition != "auto":
        return config
    file = path / CONFIG
    if file.exists():
        before = from_json(file.read_text())
        return _with(config, before.transformer.condition, before.data.num_classes)
    with processes.process_0_first("the classes and captions"):
        classes, captioned = _annotations(config)
    if processes.is_process_0():
        print(describe(classes, captioned))
    return _with(config, choose(classes, captioned), classes)


def _annotations(config: ConfigDict) -> tuple[int, float]:
    """Returns the number of classes, and the fraction of examples with captions."""
    if not config.transformer.codes_file:
        return sources.classes_and_captions(config.data)
    given = given_codes.read(config.transformer.codes_file)
    return given.num_classes, given.captioned


def without_data(config: ConfigDict) -> ConfigDict:
    """Returns the config with no condition in place of 'auto': nothing is known."""
    return _with(config, "none", 0)


def choose(classes: int, captioned: float) -> str:
    """Returns the condition for a number of classes and a fraction with captions."""
    if captioned >= CAPTIONED:
        return "text"
    return "class" if classes > 1 else "none"


def describe(classes: int, captioned: float) -> str:
    """Returns what was found and what it is used for, in one line."""
    condition = choose(classes, captioned)
    number = f" data.num_classes={classes}" if condition == "class" else ""
    return (
        f"{classes or 'no'} classes, captions of {captioned:.0%} of the examples: "
        f"transformer.condition={condition}{number}"
    )


def _with(config: ConfigDict, condition: str, classes: int) -> ConfigDict:
    """Returns the config with a condition in place of 'auto'."""
    if config.transformer.condition != "auto":
        return config
    with config.unlocked():
        config = config.copy_and_resolve_references()
    config.transformer.condition = condition
    if condition == "class" and not config.data.num_classes:
        config.data.num_classes = classes
    if condition == "none" and config.data.source == "none":
        config.transformer.condition_dropout = 0.0
    validate(config)
    return config
