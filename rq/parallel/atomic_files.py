# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all, whenever a process is killed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from etils import epath


@contextlib.contextmanager
def replacing(path, writer: str | int = "") -> Iterator[epath.Path]:
    """Gives a path to write to, which takes the name of `path` after the body.

    Args:
      path: of the file; in a bucket, too.
      writer: tells those apart that may write it at once.
    """
    path = epath.Path(path)
    temporary = path.with_name(f"{path.name}.tmp{writer}")
    yield temporary
    temporary.replace(path)


def write_json(path, content, writer: str | int = "") -> None:
    """Writes a JSON file; arguments as of `replacing`."""
    with replacing(path, writer) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
