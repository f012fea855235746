# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes small files of images' codes, entropy-coded by a model's predictions.

    rq compress photo.png --model=emoji

Writes photo.rqc beside each image (or into --out); `rq decompress` makes images of them
again, with the same model on the same machine. Another may round floats otherwise,
which a checksum finds. Images are resized and cropped as the model takes them. A file
written with --layers can be cut to its first depths: `rq compress photo.rqc --depth=2`
writes photo.2.rqc, without the model. Needs constriction: pip install 'rq[compress]'.
"""

from __future__ import annotations

from rq.cli import code_files, run_flags
from rq.cli.flag import Flag
from rq.compression import file_format
from rq.config import ConfigError
from rq.data import DataError
from rq.parallel import atomic_files

POSITIONAL = "files"
FLAGS = (
    Flag("files", "images, or files with layers to cut; --files= may be omitted", [],
         tuple),
    Flag("classes", "class of the images; by default none is known", [], list),
    Flag("text", "text of the images; by default none is known", [], tuple),
    Flag("layers", "code each depth by itself, so that files may be cut", False, bool),
    Flag("depth", "how many depths to store; by default all", type=int, minimum=1),
    *code_files.FLAGS,
)  # fmt: skip


def run(values) -> None:
    """Writes a file for each image and prints its size."""
    cut = [file for file in values.files if file.endswith(file_format.SUFFIX)]
    if cut and len(cut) < len(values.files):
        raise ConfigError(f"{cut[0]} is to be cut, other files are images: one of both")
    (_cut if cut else _compress)(values)


def _compress(values) -> None:
    places = code_files.outputs(values, "compress", _name)
    asked = run_flags.conditions(values)
    if any(len(given) > 1 for given in asked.values()):
        raise ConfigError("all images have one condition: give one class, one text")
    model = code_files.load(values, "compress")
    for image, path in places.items():
        (made,) = model.compress_each(
            str(image), **asked, layers=values.layers, depth=values.depth
        )
        _write(path, made.data)
        print(
            f"{path}: {len(made.data)} bytes, for codes of {sum(made.bits) / 8:.1f} "
            "bytes by their likelihood"
        )


def _name(path) -> str:
    return f"{path.stem}{file_format.SUFFIX}"


def _cut(values) -> None:
    if values.depth is None:
        raise ConfigError("files of rq compress can only be cut: give --depth=N")
    why = "is for images, not for files to cut"
    given = ("model", "classes", "text", "layers", "step", "dtype")
    run_flags.refuse(values, why, *given)
    places = code_files.outputs(
        values, "compress", lambda path: f"{path.stem}.{values.depth}{path.suffix}"
    )
    for source, path in places.items():
        try:
            data = file_format.cut(source.read_bytes(), values.depth)
        except DataError as error:
            raise DataError(f"{source} {error}") from None
        _write(path, data)
        print(f"{path}: {len(data)} bytes")


def _write(path, data: bytes) -> None:
    with atomic_files.atomic_write(path) as temporary:
        temporary.write_bytes(data)
