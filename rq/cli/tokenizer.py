# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Makes the tokenizer for a config's captions.

    rq tokenizer --config=cc3m --config.data.path=DIR --workdir=DIR

Writes WORKDIR/tokenizer.json: trained on the captions of the training split, or copied
from the tokenizer that the config names. `rq train` does this by itself.
"""

from __future__ import annotations

from rq.cli import found_conditions, own_codes, run_checks, run_flags, train
from rq.parallel import processes, run_lock
from rq.training import checkpoint

CONFIG, POSITIONAL = "file", "workdir"
FLAGS = (run_flags.WORKDIR, *run_flags.PROCESSES)


def run(values) -> None:
    """Makes the tokenizer in the run directory."""
    config = run_flags.require_config(values, "tokenizer")
    path = checkpoint.folder(run_flags.require_workdir(values, "tokenizer"))
    run_flags.join_processes(values)
    with run_lock.lock(path):
        config = own_codes.resolve(config, path)
        config = found_conditions.resolve(config, path)
        with processes.process_0_first("the tokenizer"):
            run_checks.claim(path, config)
            train.make_tokenizer(config, path)
