# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Stores the codes of a data set, by a trained RQ-VAE.

    rq encode runs/digits --config.codes.batch_size=256

Shards that are there stay. `rq train` does so, too.
"""

from __future__ import annotations

from rq.cli import run_flags, train
from rq.parallel import run_lock

CONFIG, POSITIONAL = "directory", "workdir"


def define(values) -> None:
    """Defines the flags."""
    run_flags.define_run(values, step=False, dtype=False)


def run(values) -> None:
    """Stores the codes in the run directory."""
    experiment = run_flags.open_run(values, "encode")
    with run_lock.lock(experiment.path):
        train.encode(experiment.config, experiment.path, experiment.mesh)
