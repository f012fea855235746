# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks all files of a run's checkpoints against their checksums.

rq check runs/digits
"""

from __future__ import annotations

from rq.cli import run_flags
from rq.training import checkpoint, checkpoint_files

FLAGS, POSITIONAL = (run_flags.WORKDIR,), "workdir"


def run(values) -> int:
    """Prints a line for each checkpoint; returns exit code 1 if a file is damaged."""
    workdir = checkpoint.folder(run_flags.require_workdir(values, "check"))
    damaged, checked = False, checkpoint_files.checkpoints_of(workdir)
    if not checked:
        raise checkpoint.CheckpointError(
            f"{workdir} has no checkpoints: give the run directory, --workdir=FOLDER"
        )
    for path in checked:
        problems = checkpoint_files.find_changes(path)
        if problems is None:
            print(f"{path}: no checksums of large files")
            problems = list(filter(None, [checkpoint_files.find_damage(path)]))
        elif not problems:
            print(f"{path}: all files are as they were written")
        for problem in problems:
            print(f"damaged: {problem}")
        damaged = damaged or bool(problems)
    return int(damaged)
