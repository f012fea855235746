# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a source of examples is, and how the `data` section of a config opens one."""

from __future__ import annotations

import hashlib
import pathlib
from typing import Protocol

import tensorflow_datasets as tfds

from rq.data import DataError, contents, digits, emoji
from rq.data.own_images import inventory, prepared
from rq.data.own_images.readers import READERS
from rq.data.tfds_source import TFDSSource

# Data sets that prepare themselves on first use.
BUILT_IN = {"digits": digits.prepare, "emoji": emoji.prepare}
# In the names of the files that hold a data set: records, features, names of classes.
CONTENTS = (".array_record", "features.json", ".labels.txt")


class Source(Protocol):
    """Examples by index, in any order and from several threads at once.

    An example is a dict of arrays: 'image' uint8 `[H, W, C]` and 'label' int32 of
    images; 'codes', 'features' and 'label' of stored codes.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict:
        """Returns an example."""

    def read(self, index: int) -> tuple[dict, tuple[str, ...]]:
        """Returns an example and its captions, none where it has none."""


def open_split(data, split: str) -> TFDSSource:
    """Opens a split of the set that the `data` section of a config names.

    Built-in sets are prepared on first use.

    Raises:
      DataError: where the set is unknown, not prepared (with the command that does it),
        prepared in another format (likewise), without images, of another number of
        classes, or without such a split.
    """
    builder = _open(data)
    _check(builder, data, split)
    records = builder.as_data_source(
        split,
        file_format="array_record",
        deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
    )
    features = builder.info.features
    return TFDSSource(records, features, f"{data.name} {split}", data.channels)


def fingerprint(data, split: str) -> str:
    """Returns a SHA-256 of a split's contents: of all records, features and classes.

    It is the same wherever the data set lies, and another one when any image is. The
    first call reads all files of the set, later ones only those that have changed.

    Raises:
      DataError: as `open_split`.
    """
    builder = _open(data)
    _check(builder, data, split)
    files = sorted(
        path
        for path in pathlib.Path(builder.data_dir).iterdir()
        if any(part in path.name for part in CONTENTS)
    )
    # Names of records begin with that of the set, which may be of the images' path.
    names = [path.name.removeprefix(f"{builder.name}-") for path in files]
    hashes = contents.hash_files(files, data.threads)
    listing = [split, *(f"{n} {h}" for n, h in zip(names, hashes, strict=True))]
    return hashlib.sha256("\n".join(listing).encode()).hexdigest()


def _open(data):
    name, folder = data.name, data.dir or None
    if name in BUILT_IN:
        builder = BUILT_IN[name](folder)
    elif name in READERS:
        builder = _find_files(data)
    else:
        builder = _find(name, folder)
    # What lies on disk decides, a converted copy included; the code knows of neither.
    return tfds.builder_from_directory(builder.data_dir)


def _builder(name, folder):
    try:
        return tfds.builder(name, data_dir=folder)
    except tfds.core.registered.DatasetNotFoundError:
        raise DataError(
            f"data.name={name!r} is neither a TFDS set nor one of "
            f"{sorted([*BUILT_IN, *READERS])}"
        ) from None
    except (AssertionError, ValueError) as error:  # a bad name, an unknown version
        reason = " ".join(str(error).split())
        raise DataError(f"data.name={name!r}: {reason}") from error


def _find(name, folder):
    builder = _builder(name, folder)
    # Not `info.splits`: with a network TFDS fills them in for sets that are not here.
    if not builder.is_prepared():
        where = f" --data_dir={folder}" if folder else ""
        raise DataError(
            f"{name} is not prepared in {builder.data_dir}; run: "
            f"tfds build {name} --file_format=array_record{where}; or, where it has "
            "moved, give its folder: --config.data.dir=FOLDER"
        )
    return builder


def _find_files(data):
    builder = prepared.builder(data)
    if not builder.is_prepared():
        raise DataError(
            f"{data.path} is not prepared in {builder.data_dir}; run: "
            "python -m rq.main --mode=prepare, with the same --config flags; or, where "
            "the prepared set or the images have moved, say where they are: "
            "--config.data.dir=FOLDER, --config.data.path=PATH"
        )
    return builder


def prepare(data) -> dict:
    """Prepares the set that the `data` section of a config names, if it is not yet.

    Returns:
      'folder' of the set, 'splits' with their sizes, and of one's own files also what
      was converted and left out.

    Raises:
      DataError: where that cannot be done, with what to do first.
    """
    report = {}
    if data.name in BUILT_IN:
        builder = BUILT_IN[data.name](data.dir or None)
    elif data.name in READERS:
        report = prepared.prepare(data)
        builder = prepared.builder(data)
    else:
        builder = _builder(data.name, data.dir or None)
        try:
            builder.download_and_prepare(file_format="array_record")
        except (AssertionError, ImportError, OSError, ValueError) as error:
            raise DataError(f"preparing {data.name}: {error}") from error
    builder = tfds.builder_from_directory(builder.data_dir)
    splits = {name: split.num_examples for name, split in builder.info.splits.items()}
    return {"folder": str(builder.data_dir), "splits": splits} | report


def summary(report: dict) -> str:
    """Returns the report of `prepare` as text that a person can check at a glance."""
    file = pathlib.Path(report["folder"]) / prepared.SUMMARY
    if file.exists():
        picture = file.with_name(prepared.PICTURE)
        return f"{file.read_text('utf-8')}  picture     {picture}"
    if "kept" in report:  # prepared by a version that wrote no summary
        return inventory.summary(report, report["folder"])
    splits = ", ".join(f"{number} {name}" for name, number in report["splits"].items())
    return f"{report['folder']}\n  images      {splits}"


def _check(builder, data, split):
    info, name = builder.info, data.name
    if tfds.core.FileFormat.ARRAY_RECORD not in info.available_file_formats():
        # Converted in place: with --out_dir TFDS leaves out the set's description.
        raise DataError(
            f"{builder.data_dir} holds {info.file_format.value}; add ArrayRecord: "
            "pip install apache-beam && "
            "python -m tensorflow_datasets.scripts.convert_format "
            f"--dataset_version_dir={builder.data_dir} --out_file_format=array_record"
        )
    if "image" not in info.features:
        raise DataError(f"{name} has no 'image' but {sorted(info.features)}")
    if unknown := {part.split("[")[0] for part in split.split("+")} - set(info.splits):
        raise DataError(
            f"{name} has splits {sorted(info.splits)}, not {sorted(unknown)}"
        )
    label = info.features["label"] if "label" in info.features else None
    classes = getattr(label, "num_classes", None)
    if data.num_classes and classes != data.num_classes:
        raise DataError(
            f"{name} has {classes or 'no'} classes, but data.num_classes is "
            f"{data.num_classes}"
        )
