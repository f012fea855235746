# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Encodes a data set with a trained RQ-VAE and stores the codes.

    rq encode runs/digits --config.codes.batch_size=256

Resumes after the shards that are already stored. `rq train` does this by itself.
"""

from __future__ import annotations

from rq.cli import run_flags, train
from rq.parallel import run_lock

CONFIG, POSITIONAL = "directory", "workdir"
FLAGS = run_flags.RUN


def run(values) -> None:
    """Stores the codes in the run directory."""
    experiment = run_flags.open_run(values, "encode")
    with run_lock.lock(experiment.path):
        train.encode(experiment.config, experiment.path, experiment.mesh)
