# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Suggests codebook sizes from how a run uses its codes.

    rq suggest-codebook runs/digits

Prints, by depth, how many codes are in use, their perplexity and entropy; and flags
with other sizes for the next run. Writes the same as JSON.
"""

from __future__ import annotations

from rq.cli import run_flags
from rq.cli.flag import Flag
from rq.evaluation import codebook_report
from rq.parallel import atomic_files, processes

CONFIG, POSITIONAL = "directory", "workdir"
FLAGS = (
    Flag("split", "images to encode", "eval", choices=("train", "eval")),
    Flag("out", "JSON file to write; default: codebook.json in the run's samples"),
    run_flags.STEP,
    *run_flags.TRAINED,
)


def run(values) -> None:
    """Measures the codes of a split and prints suggestions."""
    experiment = run_flags.open_run(values, "evaluate")
    experiment.require_rqvae("rq suggest-codebook")
    data = experiment.config.data
    split = {"train": data.train_split, "eval": data.eval_split}[values.split]
    out = run_flags.output(values, experiment, "codebook.json", ".json")
    report = codebook_report.measure(experiment, split)
    if processes.is_process_0():
        print(codebook_report.text(report, experiment.config.transformer.model))
        atomic_files.write_json(out, report)
        print(f"\nwrote {out}")
