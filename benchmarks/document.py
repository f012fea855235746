# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Where benchmarks put their tables: between marks in a document."""

from __future__ import annotations

import pathlib


def insert(path: pathlib.Path, name: str, table: str) -> None:
    """Replaces what stands between `<!-- NAME -->` and `<!-- /NAME -->` in a file.

    Raises:
      ValueError: where the marks are missing.
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, opened, rest = path.read_text().partition(start)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise ValueError(f"{path} lacks the marks {start} and {end}")
    path.write_text(f"{before}{start}\n{table}\n{end}{after}")
