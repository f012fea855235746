# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Folders, tar shards and tables, prepared once as a TFDS set.

Preparing decodes every image strictly, once. What cannot be decoded is left out, what
must be converted is kept as it is and converted whenever it is read; both are counted
in the set's `metadata.json`.
"""

from __future__ import annotations

import collections
import hashlib
import io
import itertools
import pathlib
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import tensorflow_datasets as tfds
from absl import logging

from rq.data import DataError
from rq.data.built_in import BuiltInBuilder, mixed_order
from rq.data.decode import DecodeError, examine
from rq.data.files import READERS, Found

LISTED = 1000  # files that the report names, of those that were left out
AT_ONCE = 256  # files in memory while they are checked


class Report:
    """What became of the files.

    Attributes:
      kept: images by split.
      converted: images by what they are in place of RGB; they are kept.
      small: images kept whose short side is below the config's resolution.
      left_out: files by name, with the reason.
    """

    def __init__(self):
        self.kept = collections.Counter()
        self.converted = collections.Counter()
        self.small = 0
        self.left_out: dict[str, str] = {}

    def as_dict(self) -> dict:
        """For JSON."""
        return {
            "kept": dict(self.kept),
            "converted": dict(self.converted),
            "small": self.small,
            "left_out": len(self.left_out),
            "files_left_out": dict(itertools.islice(self.left_out.items(), LISTED)),
        }


def scan(data, report: Report) -> dict[str, list[Found]]:
    """Finds the images of `data.path`, by split.

    Where there are no splits, `data.holdout` of them, drawn once for all, become
    'validation'.

    Raises:
      DataError: where the path is missing, has no images, or too few of them.
    """
    path = _path(data)
    if not path.exists():
        raise DataError(f"data.path={data.path!r}: there is no such file or folder")
    splits = collections.defaultdict(list)
    for image in READERS[data.name](path):
        splits[image.split].append(image)
    if len(splits) > 1:
        for image in splits.pop(None, []):
            report.left_out[image.name] = "in none of the splits"
    elif None in splits:
        splits["train"] = splits.pop(None)
    if "train" not in splits:
        raise DataError(f"{path} has no images to train on")
    if set(splits) == {"train"}:
        images, holdout = splits["train"], data.holdout
        if holdout >= len(images):
            raise DataError(
                f"data.holdout={holdout} of the {len(images)} images in {path} leaves "
                "none to train on"
            )
        order = mixed_order(len(images))
        splits["validation"] = [images[i] for i in sorted(order[:holdout])]
        splits["train"] = [images[i] for i in sorted(order[holdout:])]
    return dict(splits)


class FileSet(BuiltInBuilder):
    """Images of files, with name, captions and, where they have classes, label."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, data, splits: dict[str, list[Found]], report: Report):
        """A set that is filled with `splits` when it is prepared, told in `report`."""
        self.name = set_name(data)
        self._data, self._splits, self._report = data, splits, report
        super().__init__(data_dir=data.dir or None)

    def _info(self) -> tfds.core.DatasetInfo:
        labels = {i.label for images in self._splits.values() for i in images}
        features = {
            "image": tfds.features.Image(),
            "name": tfds.features.Text(),
            "caption": tfds.features.Text(),
        }
        if labels and None not in labels:
            features["label"] = tfds.features.ClassLabel(names=sorted(labels))
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Images of {_path(self._data)}.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(),  # the report, written with the set
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        return {
            split: self._generate_examples(split, images)
            for split, images in self._splits.items()
        }

    def _generate_examples(self, split, images):
        logging.info("%s: %d images to check", split, len(images))
        report = self._report
        for image, encoded, shape, kind in self._examined(images):
            if encoded is None:
                report.left_out[image.name] = kind
                continue
            report.kept[split] += 1
            report.small += min(shape) < self._data.resolution
            if kind:
                report.converted[kind] += 1
            example = {
                "image": io.BytesIO(encoded),
                "name": image.name,
                "caption": image.captions,
            }
            if "label" in self.info.features:
                example["label"] = image.label
            yield image.name, example
        if not report.kept[split]:
            reasons = list(report.left_out.items())
            raise DataError(
                f"{split}: none of {len(images)} images can be read: {reasons[:3]}"
            )
        self.info.metadata.update(report.as_dict())

    def _examined(self, images: Iterable[Found]) -> Iterator[tuple]:
        """Images with bytes, (height, width) and kind; or None twice and the reason."""

        def examined(image):
            try:
                encoded = image.read()
                return image, encoded, *examine(encoded)
            except (OSError, DecodeError) as error:
                return image, None, None, " ".join(str(error).split())

        images = iter(images)
        with ThreadPoolExecutor(max(self._data.threads, 1)) as pool:
            while some := list(itertools.islice(images, AT_ONCE)):
                yield from pool.map(examined, some)


def _path(data) -> pathlib.Path:
    return pathlib.Path(data.path).expanduser().absolute()


def set_name(data) -> str:
    """The TFDS name of what `data.path` names: another path or holdout is another."""
    path = _path(data)
    digest = hashlib.sha256(f"{path}:{data.holdout}".encode()).hexdigest()[:8]
    stem = re.sub(r"\W+", "_", path.stem.lower(), flags=re.ASCII).strip("_")
    return f"{data.name}_{stem or 'images'}_{digest}"


def builder(data) -> FileSet:
    """The set as it lies on disk, prepared or not."""
    return FileSet(data, {}, Report())


def prepare(data) -> dict:
    """Prepares what `data.path` names, where that is not done yet.

    Returns:
      the report (`Report.as_dict`), which is stored with the set.

    Raises:
      DataError: where there are no images, or none that can be read.
    """
    if not builder(data).is_prepared():
        report = Report()
        made = FileSet(data, scan(data, report), report)
        made.download_and_prepare(file_format="array_record")
        for name, reason in itertools.islice(report.left_out.items(), 10):
            logging.warning("left out %s: %s", name, reason)
    return dict(builder(data).info.metadata)
