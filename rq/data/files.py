# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Images of one's own: found in a folder, in tar shards, or listed in a table.

Each reader yields what it finds, in a fixed order; nothing is opened before it is read.
"""

from __future__ import annotations

import csv
import functools
import itertools
import json
import pathlib
import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rq.data import DataError

SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jpeg .jpg .pgm .png .ppm .tif .tiff .webp".split()
)
SPLITS = {  # names of folders, lists and tables
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
CAPTIONS = "captions.csv"


class Found(NamedTuple):
    """An image before it is read.

    Attributes:
      name: unique in the set: its path from the root of the set.
      read: returns its bytes; raises OSError.
      split: 'train', 'validation' or 'test'; None where the set has no splits.
      label: name of its class; None where the set has none.
      captions: of it, one a line; '' for none.
    """

    name: str
    read: Callable[[], bytes]
    split: str | None = None
    label: str | None = None
    captions: str = ""


def folder(path: pathlib.Path) -> Iterator[Found]:
    """Images in a folder, at any depth.

    Folders `train`, `validation` (or `val`) and `test` at the top are splits; so are
    lists `train.txt` and `validation.txt` of file names, one a line. Folders below are
    classes. Captions, one a line, are in a `.txt` beside the image, or in the columns
    `file` and `caption` of `captions.csv` at the top.
    """
    listed = _split_lists(path)
    captions = _caption_table(path / CAPTIONS)
    for file in sorted(path.rglob("*")):
        if file.suffix.lower() not in SUFFIXES or not file.is_file():
            continue
        relative = file.relative_to(path)
        name, folders = relative.as_posix(), list(relative.parts[:-1])
        split = listed.get(name) if listed else None
        if listed and split is None:
            continue  # in none of the lists
        if not listed and folders and folders[0] in SPLITS:
            split = SPLITS[folders.pop(0)]
        beside = file.with_suffix(".txt")
        lines = beside.read_text("utf-8", "replace") if beside.exists() else ""
        yield Found(
            name,
            file.read_bytes,
            split,
            folders[0] if folders else None,
            lines.strip() or captions.get(name, ""),
        )


def _split_lists(path) -> dict[str, str]:
    """Splits by file name, from lists at the top of the folder."""
    found = {}
    for stem, split in SPLITS.items():
        file = path / f"{stem}.txt"
        if file.exists():
            lines = file.read_text("utf-8").splitlines()
            found |= {line.strip(): split for line in lines if line.strip()}
    return found


def _caption_table(file) -> dict[str, str]:
    if not file.exists():
        return {}
    found = {}
    with file.open(newline="", encoding="utf-8") as stream:
        table = csv.DictReader(stream)
        if not {"file", "caption"} <= set(table.fieldnames or ()):
            raise DataError(f"{file} needs the columns file and caption")
        for row in table:
            lines = [found.get(row["file"], ""), row["caption"] or ""]
            found[row["file"]] = "\n".join(filter(None, lines))
    return found


def tar(path: pathlib.Path) -> Iterator[Found]:
    """Images in a tar file, or in all tar files of a folder (WebDataset's layout).

    Members with one name up to the first dot belong together: the image, its captions
    in `.txt` (one a line) or the field `caption` of `.json`, its class in `.cls`. Tar
    files whose name begins with train or val, validation or test are splits.
    """
    shards = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    if not shards:
        raise DataError(f"{path} has no .tar file")
    for shard in shards:
        split = next((s for word, s in SPLITS.items() if shard.name.startswith(word)),
                     None)  # fmt: skip
        yield from _members(shard, split)


def _members(shard: pathlib.Path, split: str | None) -> Iterator[Found]:
    archive = _Archive(shard)

    def sample(member):
        folder, _, name = member.name.rpartition("/")
        return f"{folder}/{name.split('.')[0]}"

    for key, members in itertools.groupby(archive.members(), sample):
        parts = {pathlib.PurePath(m.name).suffix.lower(): m for m in members}

        def text(suffix, parts=parts):
            if suffix not in parts:
                return ""
            return archive.read(parts[suffix]).decode("utf-8", "replace").strip()

        captions = text(".txt")
        if not captions and ".json" in parts:
            captions = _json_caption(text(".json"))
        for suffix in sorted(SUFFIXES & set(parts)):
            yield Found(
                f"{shard.name}/{key.lstrip('/')}{suffix}",
                functools.partial(archive.read, parts[suffix]),
                split,
                text(".cls") or None,
                captions,
            )
    if archive.damage:
        yield Found(shard.name, archive.fail, split)


def _json_caption(text: str) -> str:
    try:
        caption = json.loads(text).get("caption")
    except (ValueError, AttributeError):
        return ""
    return caption.strip() if isinstance(caption, str) else ""


class _Archive:
    """A tar file that is opened for each list and read, so that none stays open."""

    def __init__(self, path: pathlib.Path):
        self._path, self.damage = path, ""

    def members(self) -> list[tarfile.TarInfo]:
        """Files in it; of a damaged one those in front of the damage, which is kept."""
        found = []
        try:
            with tarfile.open(self._path) as archive:
                found.extend(member for member in archive if member.isfile())
        except (tarfile.TarError, OSError, EOFError) as error:
            self.damage = f"{self._path}: {error}"
        return found

    def fail(self) -> bytes:
        """Raises the damage."""
        raise OSError(self.damage)

    def read(self, member: tarfile.TarInfo) -> bytes:
        """The bytes of a member."""
        with self._path.open("rb") as stream:
            stream.seek(member.offset_data)
            content = stream.read(member.size)
        if len(content) < member.size:
            raise OSError(f"{self._path} was cut short")
        return content


def tsv(path: pathlib.Path) -> Iterator[Found]:
    """Images listed in a table, or in the tables of a folder, which are its splits.

    Each line has a file, from the table's folder, and a caption, with a tab between
    them. Lines of one file are its captions.
    """
    tables = sorted(path.glob("*.tsv")) if path.is_dir() else [path]
    if not tables:
        raise DataError(f"{path} has no .tsv file")
    for table in tables:
        captions: dict[str, list[str]] = {}
        with table.open(encoding="utf-8", errors="replace") as stream:
            for number, line in enumerate(stream, 1):
                file, tab, caption = line.rstrip("\r\n").partition("\t")
                if not tab:
                    raise DataError(f"{table}, line {number}: no tab after the file")
                captions.setdefault(file, []).append(caption.strip())
        split = SPLITS.get(table.stem) if path.is_dir() else None
        for file, lines in captions.items():
            read = (table.parent / file).read_bytes
            yield Found(file, read, split, captions="\n".join(lines))


READERS: dict[str, Callable[[pathlib.Path], Iterator[Found]]] = {
    "folder": folder,
    "tar": tar,
    "tsv": tsv,
}
