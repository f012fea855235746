# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sizes and checksums of a checkpoint's files, by which damage is found.

`files.json` is written just before a checkpoint becomes visible: the size of each file
and, of small ones, a checksum. It is checked whenever a checkpoint is read.
`checksums.json` follows in the background, with checksums of all files; `find_changes`
reads every byte to compare with it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator

from etils import epath

from rq.parallel import atomic_files

FILES, CHECKSUMS = "files.json", "checksums.json"
SMALL = 2**20  # bytes; larger files have no checksum in `files.json`
CHUNK = 2**24  # bytes read at once


def _files(path: epath.Path) -> Iterator[tuple[str, epath.Path]]:
    """Yields the name and path of each file in the folders of a checkpoint."""
    folders = [entry for entry in path.iterdir() if entry.is_dir()]
    while folders:
        for entry in folders.pop().iterdir():
            if entry.is_dir():
                folders.append(entry)
            else:
                yield entry.relative_to(path).as_posix(), entry


def _checksum(path: epath.Path, go_on: Callable[[], bool] = lambda: True) -> int:
    found = 0
    with path.open("rb") as file:
        while go_on() and (chunk := file.read(CHUNK)):
            found = zlib.crc32(chunk, found)
    return found


def write_listing(path: epath.Path) -> None:
    """Writes `files.json` of a checkpoint."""
    listing = {}
    for name, file in _files(path):
        size = file.stat().length
        listing[name] = [size, _checksum(file) if size <= SMALL else None]
    (path / FILES).write_text(json.dumps(listing))


def write_checksums(path: epath.Path, go_on: Callable[[], bool]) -> None:
    """Writes `checksums.json` of a complete checkpoint, unless `go_on` turns False."""
    found = {}
    try:
        for name, file in _files(path):
            found[name] = _checksum(file, go_on)
        if go_on():
            atomic_files.write_json(path / CHECKSUMS, found)
    except FileNotFoundError:  # the checkpoint was removed in the meantime
        return


def find_damage(path, items) -> str | None:
    """Returns the first missing, truncated or changed file of a checkpoint, or None.

    Of files above `SMALL` bytes only the size is checked. Without `files.json`, as in
    old checkpoints, nothing is.

    Args:
      path: folder of the checkpoint.
      items: names of the checkpoint's items that are checked.
    """
    path = epath.Path(path)
    if not (path / FILES).exists():
        return None
    try:
        expected = dict(json.loads((path / FILES).read_text()))
    except ValueError:
        return f"{path / FILES} cannot be read: the checkpoint is damaged"
    for name, known in sorted(expected.items()):
        # Old checkpoints have the size alone.
        size, checksum = known if isinstance(known, list) else (known, None)
        if name.split("/")[0] not in items:
            continue
        file = path / name
        if not file.exists():
            return f"{file} is missing: the checkpoint is damaged"
        if (found := file.stat().length) != size:
            return f"{file} has {found} bytes of {size}: the checkpoint is damaged"
        if checksum is not None and _checksum(file) != checksum:
            return f"{file} has other contents: the checkpoint is damaged"
    return None


def find_changes(path) -> list[str] | None:
    """Returns the files of a checkpoint that are missing or changed; reads all bytes.

    Returns:
      Paths, each with what is wrong; None if the checkpoint has no checksums of all
      files, because it is old or the run was stopped right after it.
    """
    path = epath.Path(path)
    if not (path / CHECKSUMS).exists():
        return None
    try:
        expected = dict(json.loads((path / CHECKSUMS).read_text()))
    except ValueError:
        return [f"{path / CHECKSUMS} cannot be read"]
    found = []
    for name, checksum in sorted(expected.items()):
        file = path / name
        if not file.exists():
            found.append(f"{file} is missing")
        elif _checksum(file) != checksum:
            found.append(f"{file} has other contents")
    return found


def checkpoints_of(workdir) -> list[epath.Path]:
    """Returns the folders of all checkpoints of a run directory, by stage and step."""
    stages = sorted(path for path in epath.Path(workdir).iterdir() if path.is_dir())
    return [
        path
        for stage in stages
        for path in sorted(stage.iterdir(), key=lambda path: path.name.zfill(20))
        if path.name.isdigit() and (path / "_CHECKPOINT_METADATA").exists()
    ]
