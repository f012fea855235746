# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds images listed in tables, with a file and a caption on each line."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from rq.data import DataError, walk
from rq.data import captions as caption_files
from rq.data.own_images.found import SPLITS, Found, note_encoding
from rq.data.own_images.inventory import Inventory

_HEADER = ("file", "source")


def tsv(
    path: pathlib.Path, inventory: Inventory | None = None, paired: bool = False
) -> Iterator[Found]:
    """Yields the images listed in a table, or in a folder of tables, one per split.

    Each line has a file, relative to the table, a tab and a caption. A file may have
    several lines. Files that no table lists are ignored.

    With `paired` the second column is the source image, and the caption may be left
    out. A header `file`, `source` is skipped.

    Raises:
      DataError: if there is no table, or a line has no tab.
    """
    inventory = Inventory() if inventory is None else inventory
    tables = sorted(path.glob("*.tsv")) if path.is_dir() else [path]
    if not tables:
        raise DataError(f"{path} has no .tsv file")
    for table in tables:
        captions: dict[str, list[str]] = {}
        sources: dict[str, pathlib.Path] = {}
        rows, encoding = caption_files.read_tsv(table)
        note_encoding(inventory, table.name, encoding)
        inventory.other["tables of captions"] += 1
        for file, caption in rows:
            if paired:
                source, _, caption = caption.partition("\t")
                if not captions and (file.lower(), source.lower()) == _HEADER:
                    continue
                read = table.parent / source.strip()
                if sources.setdefault(file, read) != read:
                    line = walk.printable(f"{file} {source}")
                    inventory.note("second source images of a name, not used", line)
                    continue
            captions.setdefault(file, []).append(caption)
        split = SPLITS.get(table.stem.lower()) if path.is_dir() else None
        for file, lines in captions.items():
            image = table.parent / file
            yield Found(
                walk.printable(file) or "(no name)",
                image.read_bytes,
                split,
                captions="\n".join(filter(None, lines)),
                size=_size(image),
                source=sources[file].read_bytes if paired else None,
            )


def _size(path: pathlib.Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return -1
