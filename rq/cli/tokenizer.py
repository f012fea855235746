# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Makes the tokenizer of a config's captions.

    rq tokenizer --config=configs/cc3m.py --config.data.path=DIR --workdir=DIR

Trains it on the captions of the training split, or copies the one that the config
names, to WORKDIR/tokenizer.json. `rq train` does so, too.
"""

from __future__ import annotations

from rq.cli import run_checks, run_flags, train
from rq.parallel import processes
from rq.training import checkpoint

CONFIG, POSITIONAL = "file", "workdir"


def define(values) -> None:
    """Defines the flags."""
    run_flags.define_workdir(values)
    run_flags.define_processes(values)


def run(values) -> None:
    """Makes the tokenizer in the run directory."""
    config = train.require_config(values, "tokenizer")
    path = checkpoint.folder(run_flags.require_workdir(values, "tokenizer"))
    run_flags.join_processes(values)
    with processes.process_0_first("the tokenizer"):
        run_checks.claim(path, config)
        train.make_tokenizer(config, path)
