# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds images in a folder, with lists of splits and captions."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from rq.data import captions as caption_files
from rq.data import walk
from rq.data.own_images.found import (
    CAPTION_SUFFIXES,
    SPLITS,
    Found,
    class_name,
    comparable,
    kind_of_file,
    note_encoding,
    stem,
)
from rq.data.own_images.inventory import Inventory, count_other

CAPTIONS = ("captions.csv", "captions.tsv")
_LISTS = frozenset(f"{name}.txt" for name in SPLITS)


def folder(path: pathlib.Path, inventory: Inventory | None = None) -> Iterator[Found]:
    """Yields the images in a folder, at any depth; links are followed.

    Top-level folders `train`, `validation` (or `val`) and `test` are splits, or the
    lists of file names `train.txt` and `validation.txt`, one name a line. Folders below
    are classes. Captions, one a line, are in a `.txt` or `.caption` next to the image,
    or in the columns `file` and `caption` of a top-level `captions.csv`, or in
    `captions.tsv` (see `read_tsv`).
    """
    inventory = Inventory() if inventory is None else inventory
    images, beside, lists, tables = [], {}, {}, []
    for file in walk.walk(path):
        kind = kind_of_file(file.name, file.head)
        if file.problem and kind != "system":
            inventory.leave_out(walk.printable(file.name), file.problem)
        elif kind == "image":
            images.append(file)
        elif kind == "caption":
            beside[stem(file.name) + walk.suffix(file.name)] = file.path
        elif file.name.lower() in CAPTIONS:
            tables.append(file.path)
            inventory.other["tables of captions"] += 1
        else:
            count_other(inventory, file.name)
    stems = {stem(image.name) for image in images}
    for name in [name for name in beside if name.lower() in _LISTS]:
        if stem(name) not in stems:  # else captions of an image test.png
            lists[SPLITS[stem(name).lower()]] = beside.pop(name)
            inventory.other["lists of a split"] += 1
    listed = _Listed(lists, inventory)
    captions = _Captions(beside, tables, inventory)
    labels = set()
    for image in images:
        folders = image.name.split("/")[:-1]
        split = listed.split(image.name)
        if not lists and folders and folders[0].lower() in SPLITS:
            split = SPLITS[folders.pop(0).lower()]
        label = class_name(folders[0]) if folders else None
        labels.add(label)
        lines = captions.of(image.name)
        if lists and split is None:
            reason = "in none of the lists of splits"
            inventory.leave_out(walk.printable(image.name), reason)
            continue
        yield Found(
            walk.printable(image.name),
            image.path.read_bytes,
            split,
            label,
            lines,
            image.size,
        )
    captions.count_unused()
    listed.count_unused()
    for name in _class_folders(path, bool(lists)) - labels:
        inventory.note("class folders without images, which get no number", name)


class _Listed:
    """Looks up splits by file name in the lists of a folder."""

    def __init__(self, lists: dict[str, pathlib.Path], inventory: Inventory):
        self._inventory, self._splits, self._unused = inventory, {}, {}
        for split, file in lists.items():
            text, _ = caption_files.decode_text(file.read_bytes())
            for line in caption_files.caption_lines(text):
                name = comparable(line)
                if self._splits.setdefault(name, split) != split:
                    note = "files in two lists of splits; the first is used"
                    inventory.note(note, line)
                self._unused[name] = line

    def split(self, name: str) -> str | None:
        """Returns the split of a file."""
        self._unused.pop(comparable(name), None)
        return self._splits.get(comparable(name))

    def count_unused(self) -> None:
        """Counts listed names without an image."""
        for line in self._unused.values():
            self._inventory.note("names in lists of splits without an image", line)


class _Captions:
    """Looks up the captions of images in files next to them, else in tables."""

    def __init__(self, beside, tables, inventory: Inventory):
        self._beside, self._inventory = beside, inventory
        self._used: set[str] = set()
        self._table: dict[str, list[str]] = {}
        for path in tables:
            csv = walk.suffix(path.name) == ".csv"
            read = caption_files.read_csv if csv else caption_files.read_tsv
            rows, encoding = read(path)
            note_encoding(inventory, path.name, encoding)
            for file, caption in rows:
                self._table.setdefault(comparable(file), []).append(caption)
        self._unused = set(self._table)

    def of(self, name: str) -> str:
        """Returns the captions of an image, one a line; '' if there are none."""
        names = [base + s for base in (name, stem(name)) for s in CAPTION_SUFFIXES]
        lines = []
        for file in names:
            if file in self._beside:
                text, encoding = _read_text(self._beside[file], self._inventory)
                note_encoding(self._inventory, walk.printable(file), encoding)
                lines += caption_files.caption_lines(text)
                self._used.add(file)
        key = comparable(name)
        self._unused.discard(key)
        lines = lines or self._table.get(key, [])
        return "\n".join(filter(None, map(caption_files.one_line, lines)))

    def count_unused(self) -> None:
        """Counts captions without an image."""
        if self._used:
            self._inventory.other["files of captions"] += len(self._used)
        for name in sorted(self._beside.keys() - self._used):
            self._inventory.other["text files without an image"] += 1
            note = "text files without an image next to them"
            self._inventory.note(note, walk.printable(name))
        for name in sorted(self._unused):
            self._inventory.note("files in tables of captions without an image", name)


def _read_text(path, inventory) -> tuple[str, str]:
    try:
        return caption_files.decode_text(path.read_bytes())
    except OSError as error:
        inventory.note(f"captions not read ({error.strerror})", str(path))
        return "", "utf-8"


def _class_folders(path: pathlib.Path, listed: bool) -> set[str]:
    """Returns the names of class folders, with or without images."""

    def folders(root):
        inner = (f for f in root.iterdir() if f.is_dir())
        return [f for f in inner if not walk.is_system_file(f"{f.name}/")]

    top = folders(path)
    splits = [f for f in top if f.name.lower() in SPLITS and not listed]
    found = [f for f in top if f not in splits]
    for split in splits:
        found += folders(split)
    return {class_name(f.name) for f in found}
