# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Atomic writes: readers see a file's old or new content, never a part."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from etils import epath


@contextlib.contextmanager
def atomic_write(path, writer: str | int = "") -> Iterator[epath.Path]:
    """Yields a temporary path, which is renamed to `path` after the body.

    Args:
      path: local or in a bucket.
      writer: sets apart programs that may write the same file at the same time.
    """
    path = epath.Path(path)
    temporary = path.with_name(f"{path.name}.tmp{writer}")
    yield temporary
    temporary.replace(path)


def write_json(path, content, writer: str | int = "") -> None:
    """Writes a JSON file atomically; `path` and `writer` as in `atomic_write`."""
    with atomic_write(path, writer) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
