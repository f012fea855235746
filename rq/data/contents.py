# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Hashes of what files contain, computed once for each state of a file."""

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

# A file changed twice within the clock's resolution looks as if it had not changed
# since: the hash of one that is younger than this is not kept.
MIN_AGE = 2.0  # seconds


def cache_folder() -> pathlib.Path:
    """Returns the folder for what can be computed again: ~/.cache/rq."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "rq"


def hash_files(paths: Iterable[pathlib.Path], threads: int = 2) -> list[str]:
    """Returns the SHA-256 of each file's contents.

    A file is read once: its hash is kept in `cache_folder` for as long as its size and
    its times of modification and of change stay the same. The latter is set by the
    system, so that a file replaced by another of equal size is always read again.

    Args:
      paths: files of one folder.
      threads: that read.
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
    """Returns [size, mtime, ctime, hash] by file name; {} of a damaged cache."""
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
        logging.warning("%s cannot be written (%s): no hash is kept", cache, error)
