# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds images in tar files with the layout of WebDataset."""

from __future__ import annotations

import collections
import functools
import os
import pathlib
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from rq.data import DataError, walk
from rq.data import captions as caption_files
from rq.data.own_images.found import (
    CAPTION_SUFFIXES,
    SPLITS,
    Found,
    class_name,
    kind_of_file,
    note_encoding,
    stem,
)
from rq.data.own_images.inventory import Inventory, count_other

_BESIDE = (*CAPTION_SUFFIXES, ".json", ".cls")  # files that belong to images
_MAX_TEXT = 1 << 24  # bytes of a text file


def tar(path: pathlib.Path, inventory: Inventory | None = None) -> Iterator[Found]:
    """Yields the images in a tar file, or in all tar files of a folder, at any depth.

    Captions are in `.txt` or `.caption` files (one a line) or the field `caption` of
    `.json`, classes in `.cls`. Such a file belongs to the image with the same name but
    for the suffix. If there is none, it belongs to the images whose names begin with
    its name and a dot: `0000.txt` belongs to `0000.png`, or to both `0000.left.png` and
    `0000.right.png`. Tar files are in a split if their name begins with train, val,
    validation or test, or if they are in a folder with such a name.

    Raises:
      DataError: if there is no tar file.
    """
    inventory = Inventory() if inventory is None else inventory
    shards = {path.name: path}
    if path.is_dir():
        shards = dict(_tar_files(path, inventory))
    if not shards:
        raise DataError(f"{path} has no .tar file")
    for name, shard in shards.items():
        yield from _Shard(shard, name, inventory).images(_split(name))


def _tar_files(path, inventory: Inventory) -> Iterator[tuple[str, pathlib.Path]]:
    """Yields names and paths of tar files in a folder; counts other files."""
    for file in walk.walk(path):
        compressed = walk.suffix(file.name) == ".tgz" or ".tar." in file.name.lower()
        if walk.is_system_file(file.name):
            count_other(inventory, file.name)
        elif file.problem or compressed:
            reason = file.problem or "a compressed tar: decompress it first"
            inventory.leave_out(walk.printable(file.name), reason)
        elif walk.suffix(file.name) == ".tar":
            yield file.name, file.path
        elif walk.is_image(file.name, file.head):
            reason = "an image outside a tar file: use data.name='folder' for images"
            inventory.leave_out(walk.printable(file.name), reason)
        else:
            count_other(inventory, file.name)


def _split(name: str) -> str | None:
    """Returns the split of a tar file, by its top folder or else its name."""
    first, *rest = name.lower().split("/")
    if rest and first in SPLITS:
        return SPLITS[first]
    base = rest[-1] if rest else first
    return next((s for word, s in SPLITS.items() if base.startswith(word)), None)


class _Member(NamedTuple):
    name: str
    offset: int
    size: int


class _Shard:
    """A tar file, opened for each operation so that no file handle stays open."""

    def __init__(self, path: pathlib.Path, name: str, inventory: Inventory):
        self._path, self._inventory = path, inventory
        self._name = walk.printable(name)
        self._beside: dict[str, dict[str, _Member]] = collections.defaultdict(dict)
        self._used: set[_Member] = set()

    def images(self, split: str | None) -> Iterator[Found]:
        """Yields the images; counts the other files."""
        images = self._sorted_members()
        for image in images:
            key = stem(image.name)
            yield Found(
                f"{self._name}/{walk.printable(image.name.lstrip('/'))}",
                functools.partial(self._read, image),
                split,
                self._label(key),
                self._captions(key),
                image.size,
            )
        for suffix, members in self._beside.items():
            if used := sum(member in self._used for member in members.values()):
                self._inventory.other[f"{suffix} of images"] += used
            for member in members.values():
                if member not in self._used:
                    self._inventory.other[f"{suffix} without an image"] += 1
                    note = f"{suffix} files without an image"
                    self._inventory.note(note, self._shown(member))

    def _sorted_members(self) -> list[_Member]:
        """Returns the images; indexes files that belong to them and counts the rest."""
        images, names = [], set()
        with self._path.open("rb") as stream:
            for member in self._members():
                if walk.is_system_file(member.name):
                    count_other(self._inventory, member.name)
                elif member.name in names:
                    reason = "a second file of this name in the tar"
                    self._inventory.leave_out(self._shown(member), reason)
                elif walk.suffix(member.name) in _BESIDE:
                    suffix = walk.suffix(member.name)
                    key = member.name[: -len(suffix)]
                    for ending in (".caption", ".captions", ".text"):
                        key = key.removesuffix(ending)
                    self._beside[suffix][key] = member
                else:
                    read_head = functools.partial(_head, stream, member)
                    if kind_of_file(member.name, read_head) == "image":
                        images.append(member)
                    else:
                        count_other(self._inventory, member.name)
                names.add(member.name)
        return images

    def _members(self) -> Iterator[_Member]:
        """Yields the files in the tar, up to any damage, which is counted."""
        try:
            with tarfile.open(self._path, "r:") as archive:
                for member in archive:
                    # Saves memory: it would keep them all.
                    archive.members.clear()  # type: ignore[attr-defined]
                    if member.isfile() and not member.issparse():
                        yield _Member(member.name, member.offset_data, member.size)
                    elif not member.isdir():
                        kind = "a link" if member.linkname else "a special file"
                        self._inventory.leave_out(
                            f"{self._name}/{walk.printable(member.name)}",
                            f"{kind} in the tar: store the file itself "
                            "(tar --dereference --hard-dereference)",
                        )
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            reason = " ".join(str(error).split())
            if self._is_compressed():
                reason = "a compressed tar: decompress it first"
            self._inventory.leave_out(self._name, f"damaged tar: {reason}")

    def _is_compressed(self) -> bool:
        try:
            with self._path.open("rb") as stream:
                head = stream.read(6)
        except OSError:
            return False
        return head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))

    def _member_of(self, suffix: str, key: str) -> _Member | None:
        """Returns the file of an image, by its name or the longest part up to a dot."""
        folder, slash, base = key.rpartition("/")
        while base:
            if member := self._beside[suffix].get(folder + slash + base):
                self._used.add(member)
                return member
            base = base.rpartition(".")[0]
        return None

    def _text(self, member: _Member) -> str:
        if member.size > _MAX_TEXT:
            self._inventory.note("texts above 16 MiB, not read", self._shown(member))
            return ""
        try:
            text, encoding = caption_files.decode_text(self._read(member))
        except OSError:
            self._inventory.note("texts that are cut short", self._shown(member))
            return ""
        note_encoding(self._inventory, self._shown(member), encoding)
        return text

    def _captions(self, key: str) -> str:
        lines = []
        for suffix in CAPTION_SUFFIXES:
            if member := self._member_of(suffix, key):
                lines += caption_files.caption_lines(self._text(member))
        member = self._member_of(".json", key)
        if member and not lines:
            try:
                lines = caption_files.json_captions(self._text(member))
            except ValueError:
                self._inventory.note("damaged .json files", self._shown(member))
            else:
                if not lines:
                    note = ".json files without a caption"
                    self._inventory.note(note, self._shown(member))
        return "\n".join(map(caption_files.one_line, lines))

    def _label(self, key: str) -> str | None:
        member = self._member_of(".cls", key)
        text = self._text(member).strip() if member else ""
        if text.isascii() and text.isdecimal():
            return str(int(text)) if len(text) < 20 else text
        return class_name(text) if text else None

    def _shown(self, member: _Member) -> str:
        return f"{self._name}/{walk.printable(member.name)}"

    def _read(self, member: _Member) -> bytes:
        with self._path.open("rb") as stream:
            # Checked first: `read` would allocate memory for an impossible size.
            if member.offset + member.size > os.fstat(stream.fileno()).st_size:
                raise OSError(f"{self._name} is truncated")
            stream.seek(member.offset)
            return stream.read(member.size)


def _head(stream, member: _Member) -> bytes:
    stream.seek(member.offset)
    return stream.read(min(walk.MAGIC_BYTES, member.size))
