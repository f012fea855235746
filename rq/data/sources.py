# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Defines sources of examples; opens the one that the `data` section names."""

from __future__ import annotations

import hashlib
import pathlib
from typing import Protocol

import tensorflow_datasets as tfds

from rq.data import DataError, contents, digits, emoji, emoji_segments
from rq.data.own_images import inventory, prepared
from rq.data.own_images.readers import READERS
from rq.data.tfds_source import TFDSSource

# Data sets that are prepared on first use.
BUILT_IN = {
    "digits": digits.prepare,
    "emoji": emoji.prepare,
    "emoji_segments": emoji_segments.prepare,
}
# Parts of the names of a data set's files: records, features, class names.
CONTENTS = (".array_record", "features.json", ".labels.txt")


class Source(Protocol):
    """A sequence of examples that several threads can read at once.

    An example is a dict of arrays: 'image' uint8 `[H, W, C]`, 'label' int32 and of
    pairs 'source' for images; 'codes', 'features' and 'label', and of images with
    sources 'source_codes', for stored codes.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict:
        """Returns an example."""

    def read(self, index: int) -> tuple[dict, tuple[str, ...]]:
        """Returns an example and its captions, possibly none."""


def open_split(data, split: str, paired: bool = False) -> TFDSSource:
    """Opens a split of the data set that the `data` section of the config names.

    Built-in data sets are prepared on first use. With `paired`, examples of
    `data.source='pairs'` have a 'source'.

    Raises:
      DataError: if the data set is unknown, not prepared or in another format (the
        message has the command to run), or has no images, no such split or another
        number of classes.
    """
    builder = _open(data)
    _check(builder, data, split)
    records = builder.as_data_source(
        split,
        file_format="array_record",
        deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
    )
    features = builder.info.features
    images = {"image": "image", "source": "source"}
    if data.swap_pairs:
        images = {"image": "source", "source": "image"}
    if not (paired and data.source == "pairs"):
        images.pop("source")
    return TFDSSource(records, features, f"{data.name} {split}", data.channels, images)


def classes_and_captions(data) -> tuple[int, float]:
    """Returns the number of classes (0: none), and the fraction of captioned images.

    Of a set that does not count them, all images have captions or none has.

    Raises:
      DataError: as `open_split`.
    """
    info = _open(data).info
    has_captions = {"caption", "captions"} & set(info.features)
    counts = dict(info.metadata or {})
    captioned = float(bool(has_captions))
    if "kept" in counts:  # one's own images: captions are optional
        images = sum(counts["kept"].values())
        captioned = counts.get("images_with_captions", 0) / images
    return _num_classes(info), captioned


def _num_classes(info) -> int:
    label = info.features["label"] if "label" in info.features else None
    return getattr(label, "num_classes", None) or 0


def fingerprint(data, split: str) -> str:
    """Returns a SHA-256 of a split's contents: all records, features and classes.

    It does not depend on where the data set is stored, and changes if any image does.
    The first call reads all files of the data set, later ones only changed files.

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
    # File names begin with the name of the set, which may depend on the images' path.
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
    # Read the description on disk: the set may have been converted after it was built.
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
    # Not `info.splits`: with a network TFDS fills them in for sets that are missing.
    if not builder.is_prepared():
        where = f" --data_dir={folder}" if folder else ""
        raise DataError(
            f"{name} is not prepared in {builder.data_dir}; run: "
            f"tfds build {name} --file_format=array_record{where}; or, if it has "
            "moved, give its folder: --config.data.dir=FOLDER"
        )
    return builder


def _find_files(data):
    builder = prepared.builder(data)
    if not builder.is_prepared():
        raise DataError(
            f"{data.path} is not prepared in {builder.data_dir}; run: rq prepare, with "
            "the same --config flags; or, if the prepared set or the images have "
            "moved, give their location: --config.data.dir=FOLDER, "
            "--config.data.path=PATH"
        )
    return builder


def prepare(data) -> dict:
    """Prepares the data set that the `data` section of the config names, if needed.

    Returns:
      A dict of 'folder' and 'splits' with their sizes. For one's own images it also has
      the report of what was converted and left out.

    Raises:
      DataError: if the data set cannot be prepared.
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
    """Returns the report of `prepare` as readable text."""
    file = pathlib.Path(report["folder"]) / prepared.SUMMARY
    if file.exists():
        picture = file.with_name(prepared.PICTURE)
        return f"{file.read_text('utf-8')}  picture     {picture}"
    if "kept" in report:  # prepared by a version without summaries
        return inventory.summary(report, report["folder"])
    splits = ", ".join(f"{number} {name}" for name, number in report["splits"].items())
    return f"{report['folder']}\n  images      {splits}"


def _check(builder, data, split):
    info, name = builder.info, data.name
    if tfds.core.FileFormat.ARRAY_RECORD not in info.available_file_formats():
        # Converted in place: with --out_dir TFDS omits the description of the set.
        raise DataError(
            f"{builder.data_dir} is in {info.file_format.value}; add ArrayRecord: "
            "pip install apache-beam && "
            "python -m tensorflow_datasets.scripts.convert_format "
            f"--dataset_version_dir={builder.data_dir} --out_file_format=array_record"
        )
    if "image" not in info.features:
        raise DataError(f"{name} has no 'image', only {sorted(info.features)}")
    if data.source == "pairs" and "source" not in info.features:
        raise DataError(
            f"{name} has no images 'source' for data.source='pairs', only "
            f"{sorted(info.features)}"
        )
    if unknown := {part.split("[")[0] for part in split.split("+")} - set(info.splits):
        raise DataError(
            f"{name} has splits {sorted(info.splits)}, not {sorted(unknown)}"
        )
    classes = _num_classes(info)
    if data.num_classes and classes != data.num_classes:
        raise DataError(
            f"{name} has {classes or 'no'} classes, but data.num_classes is "
            f"{data.num_classes}"
        )
