# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Defines an image that was found but not read, and names of splits and classes."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import NamedTuple

from rq.data import walk
from rq.data.own_images.inventory import Inventory

SPLITS = {  # names of folders, lists and tables, in lower case
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
CAPTION_SUFFIXES = (".txt", ".caption")
_NOT_SNIFFED = frozenset(".cls .csv .json .tsv".split())


class Found(NamedTuple):
    """An image that was found but not read.

    Attributes:
      name: path from the root of the data set.
      read: returns its bytes; raises OSError.
      split: 'train', 'validation' or 'test'; None if the data set has no splits.
      label: class name; None if it has no class.
      captions: captions, one a line; '' if there are none.
      size: size in bytes; -1 if unknown.
      source: returns the bytes of its source image; None if it has none.
    """

    name: str
    read: Callable[[], bytes]
    split: str | None = None
    label: str | None = None
    captions: str = ""
    size: int = -1
    source: Callable[[], bytes] | None = None


def kind_of_file(name: str, head: Callable[[], bytes]) -> str:
    """Returns 'image', 'caption', 'system' or 'other'; arguments as `walk.is_image`."""
    if walk.is_system_file(name):
        return "system"
    if walk.suffix(name) in CAPTION_SUFFIXES:
        return "caption"
    if walk.suffix(name) in _NOT_SNIFFED:
        return "other"
    return "image" if walk.is_image(name, head) else "other"


def stem(name: str) -> str:
    """Returns a path without its suffix, if it is a suffix of images or captions.

    Other dots are part of the name: 'scan 2.0 (clean).png'.
    """
    ending = walk.suffix(name)
    known = ending in walk.SUFFIXES or ending in CAPTION_SUFFIXES
    return name[: -len(ending)] if known else name


def class_name(name: str) -> str:
    """Returns a class name that TFDS can store: one line, not empty."""
    name = walk.printable(name)
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
    return shown if shown.strip() == shown and shown else repr(shown)


def note_encoding(inventory: Inventory, name: str, encoding: str) -> None:
    """Notes a text that was not UTF-8, since the encoding is a guess."""
    if encoding != "utf-8":
        inventory.note(f"texts read as {encoding}", name)


def comparable(name: str) -> str:
    """Returns a file name in the form for comparison: NFC, with '/', without './'."""
    name = unicodedata.normalize("NFC", walk.printable(name)).replace("\\", "/")
    return name.removeprefix("./")
