# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Atomic writes: readers see old or new content of a file or folder, never a part."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from etils import epath

from rq.config import ConfigError


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


@contextlib.contextmanager
def new_folder(path) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    """Yields a temporary folder and a path in it that becomes `path` after the body.

    Raises:
      ConfigError: if `path` is not empty, or in a bucket.
    """
    if "://" in os.fspath(path):
        raise ConfigError(f"{path}: must be on a disk; copy it to a bucket then")
    path = pathlib.Path(path).expanduser().absolute()
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ConfigError(f"{path} exists: choose a new folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary, temporary / "made"
        (temporary / "made").rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
