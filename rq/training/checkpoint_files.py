# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds damaged checkpoints by the sizes and checksums of their files.

`files.json`, written just before a checkpoint becomes visible, has the size of each
file and checksums of small files. It is checked whenever a checkpoint is read.
`checksums.json`, written afterwards in the background, has checksums of all files;
`find_changes` reads every byte to check them.
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


def _checksum(path: epath.Path, proceed: Callable[[], bool] = lambda: True) -> int:
    found = 0
    with path.open("rb") as file:
        while proceed() and (chunk := file.read(CHUNK)):
            found = zlib.crc32(chunk, found)
    return found


def write_listing(path: epath.Path) -> None:
    """Writes a checkpoint's `files.json`."""
    listing = {}
    for name, file in _files(path):
        size = file.stat().length
        listing[name] = [size, _checksum(file) if size <= SMALL else None]
    (path / FILES).write_text(json.dumps(listing))


def write_checksums(path: epath.Path, proceed: Callable[[], bool]) -> None:
    """Writes a complete checkpoint's `checksums.json`; stops if `proceed` is False."""
    found = {}
    try:
        for name, file in _files(path):
            found[name] = _checksum(file, proceed)
        if proceed():
            atomic_files.write_json(path / CHECKSUMS, found)
    except FileNotFoundError:  # the checkpoint was removed in the meantime
        return


def find_damage(path, items=None) -> str | None:
    """Returns the first missing, truncated or changed file of a checkpoint, or None.

    Files above `SMALL` bytes are checked by size only. Old checkpoints without
    `files.json` are not checked.

    Args:
      path: folder of the checkpoint.
      items: names of the items to check; all if None.
    """
    path = epath.Path(path)
    if not (path / FILES).exists():
        return None
    try:
        expected = dict(json.loads((path / FILES).read_text()))
    except ValueError:
        return f"{path / FILES} cannot be read: the checkpoint is damaged"
    for name, known in sorted(expected.items()):
        # Old checkpoints store only the size.
        size, checksum = known if isinstance(known, list) else (known, None)
        if items is not None and name.split("/")[0] not in items:
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
    """Returns a message for each missing or changed file, after reading every byte.

    Returns:
      Messages that name the files; None if the checkpoint has no `checksums.json`,
      because it is old or the run was stopped right after writing it.
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
    """Returns the folders of all checkpoints in a run directory, by stage and step."""
    if not (workdir := epath.Path(workdir)).is_dir():
        return []
    stages = sorted(path for path in workdir.iterdir() if path.is_dir())
    return [
        path
        for stage in stages
        for path in sorted(stage.iterdir(), key=lambda path: path.name.zfill(20))
        if path.name.isdigit() and (path / "_CHECKPOINT_METADATA").exists()
    ]
