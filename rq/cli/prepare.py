# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Prepares a data set, and prints what is in it.

rq prepare --config=configs/folder.py --config.data.path=DIR
"""

from __future__ import annotations

import json

from rq.cli.train import require_config
from rq.data import sources

CONFIG = "file"


def define(values) -> None:
    """Defines the flags: none but `--config`."""


def run(values) -> None:
    """Prepares the data set of the config."""
    config = require_config(values, "prepare")
    report = sources.prepare(config.data)
    print(sources.summary(report))
    print(json.dumps(report, indent=2))
