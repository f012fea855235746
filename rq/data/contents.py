# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Hashes of file contents, cached until a file changes."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from absl import logging

from rq.parallel import atomic_files

# Two changes within the clock's resolution look like one, so hashes of files that
# changed less than this long ago are not cached.
MIN_AGE = 2.0  # seconds


def cache_folder() -> pathlib.Path:
    """Returns the cache folder, ~/.cache/rq."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "rq"


def hash_files(paths: Iterable[pathlib.Path], threads: int = 2) -> list[str]:
    """Returns the SHA-256 of each file's contents.

    Hashes are cached in `cache_folder` until a file's size, mtime or ctime changes. The
    system sets the ctime, so a file that is replaced by another of the same size and
    mtime is always read again.

    Args:
      paths: files of one folder.
      threads: number of reading threads.
    """
    paths = list(paths)
    if not paths:
        return []
    folder = hashlib.sha256(os.fsencode(paths[0].parent.resolve())).hexdigest()
    cache = cache_folder() / "contents" / f"{folder[:24]}.json"
    known, states = _read(cache), {path.name: _state(path) for path in paths}
    changed = [p for p in paths if known.get(p.name, [None])[:-1] != states[p.name]]
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        found = dict(zip(changed, pool.map(_hash, changed), strict=True))
    hashes = [found[p] if p in found else known[p.name][-1] for p in paths]
    limit = time.time_ns() - int(MIN_AGE * 1e9)
    old = {p.name: [*states[p.name], h] for p, h in found.items()
           if max(states[p.name][1:]) < limit}  # fmt: skip
    if old:
        _write(cache, known | old)
    return hashes


def _state(path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _hash(path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(cache) -> dict[str, list]:
    """Returns [size, mtime, ctime, hash] by file name; {} if the cache is damaged."""
    try:
        known = json.loads(cache.read_text())
        return {name: entry for name, entry in known.items() if len(entry) == 4}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _write(cache, known) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        atomic_files.write_json(cache, known, os.getpid())
    except OSError as error:
        logging.warning("cannot write %s (%s): hashes are not cached", cache, error)
