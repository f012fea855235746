# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Inserts the tables of benchmarks into documents."""

from __future__ import annotations

import pathlib


def insert(path: pathlib.Path, name: str, table: str) -> None:
    """Replaces the text between `<!-- NAME -->` and `<!-- /NAME -->` in a file.

    Raises:
      ValueError: if a marker is missing.
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, opened, rest = path.read_text().partition(start)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise ValueError(f"{path} lacks the markers {start} and {end}")
    path.write_text(f"{before}{start}\n{table}\n{end}{after}")
