# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Unpacks chosen files of a .tar.gz that nobody has checked.

Only plain files are written, with the names that they have in the archive. A path that
leads out of the archive is refused, and so is an archive that grows out of proportion.
"""

from __future__ import annotations

import gzip
import pathlib
import shutil
import tarfile
import zlib
from collections.abc import Callable
from typing import Any

from rq import progress
from rq.convert import stored_zip

_ERRORS = (tarfile.TarError, EOFError, zlib.error, OverflowError, ValueError)
# Weights hardly shrink; gzip makes files of zeros a thousand times smaller.
_MAX_GROWTH, _ALWAYS = 100, 2**30
_MAX_HEADER = 2**24  # bytes read at once, which headers may claim
_CHUNK = 2**20
_GZIP = b"\x1f\x8b"


def unpack(archive, folder, is_wanted: Callable[[str], bool]) -> list[pathlib.Path]:
    """Copies the wanted files of a .tar.gz or .tar into a new folder.

    Args:
      archive: the file.
      folder: created; files keep their paths below it.
      is_wanted: function of a file's name, without its folder.

    Returns:
      Paths of the copies.

    Raises:
      ValueError: if the file is no such archive, is damaged, has a path that leads out
        of it, or becomes more than 100 times larger. One line.
      OSError: if the files do not fit on the disk.
    """
    archive, folder = pathlib.Path(archive), pathlib.Path(folder)
    folder.mkdir(parents=True)
    size = archive.stat().st_size
    try:
        with archive.open("rb") as raw, progress.Bar("unpacking", size, "B") as shown:
            is_gzip = raw.read(2) == _GZIP
            raw.seek(0)
            limit = size * (_MAX_GROWTH if is_gzip else 1) + _ALWAYS
            content = gzip.GzipFile(fileobj=raw) if is_gzip else raw
            stream: Any = _Stream(
                content, limit, lambda: shown.update(raw.tell() - shown.done)
            )
            with tarfile.open(fileobj=stream, mode="r:") as members:
                written = _copy(members, folder, is_wanted)
            while stream.read(_CHUNK):  # gzip's checksum is at the end
                pass
    except _ERRORS as error:
        reason = stored_zip.one_line(error)
        raise ValueError(
            f"{archive} is no .tar.gz or .tar, or damaged: {reason}"
        ) from None
    except gzip.BadGzipFile as error:
        raise ValueError(f"{archive} is damaged: {error}") from None
    return written


class _Stream:
    """Reads a file forwards, no more than a limit."""

    def __init__(self, file, limit: int, on_read: Callable[[], None]):
        self._file, self._limit, self._on_read = file, limit, on_read

    def read(self, size: int) -> bytes:
        if size > _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        data = self._file.read(size)
        self._check()
        return data

    def seek(self, position: int) -> None:
        left = position - self._file.tell()
        if left < 0:  # gzip would begin again from the start
            raise tarfile.ReadError("it goes backwards")
        while left and (data := self.read(min(left, _CHUNK))):
            left -= len(data)

    def tell(self) -> int:
        return self._file.tell()

    def _check(self) -> None:
        self._on_read()
        if self._file.tell() > self._limit:
            raise tarfile.ReadError(f"it is larger than {self._limit} bytes inside")


def _copy(members, folder: pathlib.Path, is_wanted) -> list[pathlib.Path]:
    written = []
    while (member := members.next()) is not None:
        members.members = []  # a list of all headers would grow without bound
        path = _inside(member.name)
        if member.isreg() and not member.issparse() and is_wanted(path.name):
            written.append(_write(members.extractfile(member), member, folder / path))
    return written


def _inside(name: str) -> pathlib.PurePosixPath:
    """Returns a member's path, which must stay in the archive."""
    path = pathlib.PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise tarfile.ReadError(f"the path {name[:80]!r} leads out of it")
    return path


def _write(source, member, path: pathlib.Path) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if member.size > free:
        raise OSError(
            f"{member.name[:80]} has {member.size / 1e9:.1f} GB, but {path.parent} "
            f"only {free / 1e9:.1f} GB of space left on the disk"
        )
    with path.open("xb") as file:
        shutil.copyfileobj(source, file, _CHUNK)
    if path.stat().st_size != member.size:
        raise tarfile.ReadError(f"{member.name[:80]} is cut short")
    return path
