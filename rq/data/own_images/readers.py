# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Maps `data.name` to readers of one's own images.

A reader yields the images that it finds, without opening them, in a fixed order. It
counts all other files in an `Inventory`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator

from rq.data.own_images.folders import folder
from rq.data.own_images.found import Found
from rq.data.own_images.inventory import Inventory
from rq.data.own_images.tables import tsv
from rq.data.own_images.tar_shards import tar

READERS: dict[str, Callable[[pathlib.Path, Inventory], Iterator[Found]]] = {
    "folder": folder,
    "tar": tar,
    "tsv": tsv,
}
