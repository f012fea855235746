# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Metrics that were written to a run directory by earlier commands."""

from __future__ import annotations

import json
import pathlib

from rq.evaluation import report, sample_job, trained_stages
from rq.experiment import Experiment


def metrics(experiment: Experiment) -> dict[str, float]:
    """Returns what `rq evaluate` and training measured of the checkpoints in use.

    Those of both stages are of the latest checkpoints: of others there are none. Names
    of samples' metrics have the network, the reference and the settings.
    """
    found, folder = {}, pathlib.Path(experiment.path)
    steps = {stage: experiment.step_of(stage) for stage in experiment.stages}
    file = folder / "samples" / trained_stages.EVALUATION
    if file.exists() and all(experiment.finished(stage) for stage in steps):
        found |= json.loads(file.read_text())
    for jobs in report.results(folder / sample_job.EVALUATIONS).values():
        for job in jobs:
            if job["settings"]["checkpoints"] != steps:
                continue
            about = job["evaluation"]
            origin = f"{about['label']}, {about['reference']}"
            origin += f"; {report.describe(job['settings'])}"
            found |= {f"{k} ({origin})": x for k, x in job["metrics"].items()}
    return {name: x for name, x in found.items() if isinstance(x, int | float)}
