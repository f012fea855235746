# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Image sets by TFDS, prepared once as ArrayRecord, and read by index."""

from __future__ import annotations

import hashlib
import pathlib

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from rq.data import DataError, digits, emoji, prepared
from rq.data.decode import DecodeError, decode
from rq.data.files import READERS, SUFFIXES

# Sets that prepare themselves.
BUILT_IN = {"digits": digits.prepare, "emoji": emoji.prepare}
TRIES = 100  # images that cannot be decoded, one after another, before it is an error


class ImageSource:
    """One split of a prepared TFDS set, decoded to `channels` channels.

    By index it gives {'image': uint8 `[H, W, channels]`, 'label': int32}. An image that
    cannot be decoded is replaced by the next one, which is logged and counted, so that
    what index i gives does not depend on what was read before.

    Attributes:
      replaced: indices that were replaced so far.
    """

    def __init__(self, records, features, name: str, channels: int):
        """Takes records of serialized examples, and the set's TFDS features.

        Of these only those are parsed that are asked for: it takes time.
        """
        self._records, self._name, self._channels = records, name, channels
        self._pixels, self._texts = (
            tfds.features.FeaturesDict({k: features[k] for k in names if k in features})
            for names in (("image", "label"), ("caption", "captions"))
        )
        self.replaced: set[int] = set()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._find(index)[0]

    def read(self, index: int) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        """An example and its captions: those of the image that is in it."""
        example, serialized = self._find(index)
        return example, self._captions_of(serialized)

    def captions(self, index: int) -> tuple[str, ...]:
        """Captions of an image: of the set's 'caption', a line each, or 'captions'."""
        return self._captions_of(self._records[index])

    def _find(self, index):
        """The example at `index`, or the next whole one, and its serialized record."""
        for offset in range(min(TRIES, len(self))):
            at = (index + offset) % len(self)
            serialized = self._records[at]
            record = self._pixels.deserialize_example_np(
                serialized, decoders={"image": tfds.decode.SkipDecoding()}
            )
            try:
                image = decode(record["image"], self._channels)
            except DecodeError as error:
                self._replace(at, error)
                continue
            label = np.int32(record.get("label", 0))
            return {"image": image, "label": label}, serialized
        raise DataError(f"{self._name}: no image from {index} on can be decoded")

    def _replace(self, index, error):
        if index not in self.replaced:
            self.replaced.add(index)
            logging.warning(
                "%s: image %d is replaced by the next (%s); %d so far",
                self._name,
                index,
                error,
                len(self.replaced),
            )

    def _captions_of(self, serialized) -> tuple[str, ...]:
        record = self._texts.deserialize_example_np(serialized)
        if "caption" in record:
            text = record["caption"]
            lines = (text.decode() if isinstance(text, bytes) else text).splitlines()
        else:
            lines = record.get("captions", ())
            lines = lines["text"] if isinstance(lines, dict) else lines
        return tuple(x.decode() if isinstance(x, bytes) else str(x) for x in lines)


class FileSource:
    """Image files of one's own, read as they are; 'label' is 0.

    What cannot be decoded is left out, with a warning; or, where it is `strict`, an
    error when it is read.

    Attributes:
      paths: of the files.
    """

    def __init__(self, path, channels: int, strict: bool = False):
        """Opens a file, or all images in a folder.

        Raises:
          DataError: where there is no image, or none that can be decoded.
        """
        path, self._channels = pathlib.Path(path), channels
        if not path.exists():
            raise DataError(f"{path}: there is no such file or folder")
        found = [path]
        if path.is_dir():
            files = sorted(path.rglob("*"))
            found = [file for file in files if file.suffix.lower() in SUFFIXES]
        self.paths = [file for file in found if strict or self._is_readable(file)]
        if not self.paths:
            raise DataError(f"{path}: none of {len(found)} files is an image")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        try:
            image = decode(self.paths[index].read_bytes(), self._channels)
        except DecodeError as error:
            raise DataError(f"{self.paths[index]}: {error}") from error
        return {"image": image, "label": np.int32(0)}

    def _is_readable(self, path):
        try:
            decode(path.read_bytes(), self._channels)
        except (DecodeError, OSError) as error:
            logging.warning("left out %s: %s", path, error)
            return False
        return True


def source(data, split: str) -> ImageSource:
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
    return ImageSource(records, features, f"{data.name} {split}", data.channels)


def fingerprint(data, split: str) -> str:
    """SHA-256 of what a split is read from: its description, files and their sizes.

    Raises:
      DataError: as `source`.
    """
    builder = _open(data)
    _check(builder, data, split)
    digest = hashlib.sha256(split.encode())
    folder = pathlib.Path(builder.data_dir)
    for path in sorted(folder.iterdir()):
        digest.update(f"{path.name} {path.stat().st_size} ".encode())
    digest.update((folder / "dataset_info.json").read_bytes())
    return digest.hexdigest()


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
            f"tfds build {name} --file_format=array_record{where}"
        )
    return builder


def _find_files(data):
    builder = prepared.builder(data)
    if not builder.is_prepared():
        raise DataError(
            f"{data.path} is not prepared in {builder.data_dir}; run: "
            "python -m rq.main --mode=prepare, with the same --config flags"
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
