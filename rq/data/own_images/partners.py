# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds the source images of one's own images in a folder of equal names."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator

from rq.data import DataError, walk
from rq.data.own_images.found import Found, comparable, stem
from rq.data.own_images.inventory import Inventory


def with_sources(
    images: Iterable[Found], folder: str, inventory: Inventory
) -> Iterator[Found]:
    """Yields images with the source images of their names; counts all others.

    The path from the root must be the same, up to the suffix: train/a.jpg has the
    source train/a.jpg, if there is one, else the first of train/a.*.

    Args:
      images: found in the folder of images.
      folder: of the source images (`data.source_path`).
      inventory: counts images without a source image, and notes sources without image.

    Raises:
      DataError: if there is no such folder, or no image has a source image.
    """
    root = pathlib.Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"data.source_path={folder!r}: there is no such folder")
    known: dict[str, walk.File] = {}
    first: dict[str, str] = {}  # of names without suffix
    for file in walk.walk(root):
        is_image = not file.problem and walk.is_image(file.name, file.head)
        if not is_image or walk.is_system_file(file.name):
            continue
        name = comparable(file.name)
        known[name] = file
        first.setdefault(stem(name), name)
    unused, used, paired, without = set(known), set(), 0, []
    for image in images:
        name = comparable(image.name)
        source = name if name in known else first.get(stem(name))
        if source is None:
            without.append(image.name)
            inventory.leave_out(image.name, "no source image of its name")
            continue
        unused.discard(source)
        used.add(stem(source))
        paired += 1
        yield image._replace(source=known[source].path.read_bytes)
    for name in sorted(unused):
        if stem(name) in used or first[stem(name)] != name:
            file = known[name].name
            inventory.note("second source images of a name, not used", file)
        else:
            inventory.note("source images without an image", stem(name))
    if without and not paired:
        raise DataError(
            f"none of {len(without)} images has a source image in {folder}, which has "
            f"{len(known)} images: {without[0]} needs one of the same name there"
        )
