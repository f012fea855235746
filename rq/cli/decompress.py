# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Makes images of the files of `rq compress`.

    rq decompress photo.rqc --model=emoji

Writes photo.rqc.png beside each file (or into --out), with the model that it was
written with. --depth=2 decodes the first two depths; of layers it reads no more.
"""

from __future__ import annotations

from rq import visualize
from rq.cli import code_files
from rq.cli.flag import Flag

POSITIONAL = "files"
FLAGS = (
    Flag("files", "files of rq compress; --files= may be omitted", [], tuple),
    Flag("depth", "how many depths to decode; by default all", type=int, minimum=1),
    *code_files.FLAGS,
)


def run(values) -> None:
    """Writes a PNG for each file."""
    places = code_files.outputs(values, "decompress", lambda path: f"{path.name}.png")
    model = code_files.load(values, "decompress")
    for source, path in places.items():
        (image,) = model.decompress([source], values.depth)
        visualize.save_png(path, image if image.shape[-1] == 3 else image[..., 0])
        print(f"{path}: {image.shape[1]} x {image.shape[0]}")
