# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Ranks classes or texts by the likelihood of images under them.

    rq rank runs/digits --images=FILE_OR_FOLDER --classes=3,7

Prints, and writes as JSON, the exact likelihood of each image, the likeliest condition
first, and bits per code by depth.
"""

from __future__ import annotations

from absl import flags

from rq.cli import run_flags
from rq.config import ConfigError
from rq.evaluation import ranking

CONFIG, POSITIONAL = "directory", "workdir"


def define(values) -> None:
    """Defines the flags."""
    flags.DEFINE_string(
        "images", None, "an image file or a folder; needed", flag_values=values
    )
    run_flags.define_conditions(values)
    run_flags.define_sampling(values, ["batch_size"])
    flags.DEFINE_string("out", None, "a .json", flag_values=values)
    run_flags.define_run(values)


def run(values) -> None:
    """Prints and writes the ranking."""
    if values.images is None:
        raise ConfigError("rq rank needs --images=FILE_OR_FOLDER")
    conditions = run_flags.conditions(values)
    experiment = run_flags.open_run(values, "rank")
    out = run_flags.output(values, "ranking.json", ".json")
    run_flags.write_json(out, ranking.rank(experiment, values.images, **conditions))
