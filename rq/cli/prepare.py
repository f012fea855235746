# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Prepares a data set and prints a summary of it.

rq prepare --config=folder --config.data.path=DIR
"""

from __future__ import annotations

import json

from rq.cli import found_conditions, run_flags
from rq.data import sources

CONFIG, FLAGS = "file", ()


def run(values) -> None:
    """Prepares the data set of the config."""
    config = run_flags.require_config(values, "prepare")
    report = sources.prepare(config.data)
    print(sources.summary(report))
    if config.transformer.condition == "auto":
        print(found_conditions.describe(*sources.classes_and_captions(config.data)))
    print(json.dumps(report, indent=2))
