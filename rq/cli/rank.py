# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Ranks classes or texts by the likelihood of given images.

    rq rank runs/digits --images=FILE_OR_FOLDER --classes=3,7

Prints, and writes as JSON, the exact likelihood of each image under each condition, the
most likely condition first, and bits per code by depth.
"""

from __future__ import annotations

from rq.cli import run_flags
from rq.cli.flag import Flag
from rq.config import ConfigError
from rq.evaluation import ranking

CONFIG, POSITIONAL = "directory", "workdir"
FLAGS = (
    Flag("images", "image file or folder (required)"),
    *run_flags.CONDITIONS,
    Flag("source", "source image, or folder of them, of a model that has them"),
    run_flags.SAMPLING["batch_size"],
    Flag("out", "JSON file to write"),
    run_flags.STEP,
    run_flags.DTYPE,
    *run_flags.TRAINED,
)


def run(values) -> None:
    """Prints and writes the ranking."""
    if values.images is None:
        raise ConfigError("rq rank needs --images=FILE_OR_FOLDER")
    conditions = run_flags.conditions(values) | {"source": values.source}
    experiment = run_flags.open_run(values, "rank")
    out = run_flags.output(values, experiment, "ranking.json", ".json")
    run_flags.write_json(out, ranking.rank(experiment, values.images, **conditions))
