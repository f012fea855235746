# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Prepares folders, tar shards and tables as a TFDS data set.

Every image is decoded once, strictly. Images that cannot be decoded are left out.
Others are stored unchanged and converted when they are read. Every file is counted in
`metadata.json` in the data set, with `summary.txt` and `first_images.png` for people.
"""

from __future__ import annotations

import array
import collections
import hashlib
import io
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from rq import progress
from rq.config import height_and_width
from rq.data import DataError, walk
from rq.data.built_in import BuiltInBuilder
from rq.data.decode import DecodeError, decode, examine
from rq.data.own_images.contact_sheet import ContactSheet
from rq.data.own_images.inventory import Inventory, summary
from rq.data.own_images.partners import with_sources
from rq.data.own_images.readers import READERS, Found
from rq.data.own_images.tables import tsv
from rq.data.permutation import mixed_order

SUMMARY, PICTURE = "summary.txt", "first_images.png"
MAX_BYTES = 1 << 28  # per image file
MAX_CLASS = 1 << 20  # largest class number


def scan(data, inventory: Inventory) -> dict[str, list[Found]]:
    """Returns the images of `data.path` by split, `train` first.

    If there are no splits, `data.holdout` images, sampled with a fixed seed, become
    'validation'. Files with the same bytes stay in the same split.

    Raises:
      DataError: if the path is missing or has no images, or too few.
    """
    path = _path(data)
    if not path.exists():
        raise DataError(f"data.path={data.path!r}: there is no such file or folder")
    splits: dict[Any, list[Found]] = collections.defaultdict(list)
    names = set()
    for image in _read(data, path, inventory):
        if (image.split, image.name) in names:
            inventory.leave_out(image.name, "listed a second time")
            continue
        names.add((image.split, image.name))
        splits[image.split].append(image)
    if len(splits) > 1:
        for image in splits.pop(None, []):
            inventory.leave_out(image.name, "in none of the splits")
    elif None in splits:
        splits["train"] = splits.pop(None)
    if "train" not in splits:
        first = [f"{n} {reason}" for n, reason in inventory.files_left_out.items()][:3]
        seen = f": {inventory.left_out} left out, {first}" if first else ""
        raise DataError(f"{path} has no images to train on{seen}")
    if set(splits) == {"train"}:
        splits = _hold_out(splits["train"], data.holdout, path, inventory)
    return {"train": splits.pop("train")} | dict(sorted(splits.items()))


def _read(data, path: pathlib.Path, inventory: Inventory) -> Iterator[Found]:
    """Yields the images that a reader finds; raises DataError if it cannot read."""
    paired = data.source == "pairs"
    try:
        if paired and data.name == "tsv":
            yield from tsv(path, inventory, paired=True)
        elif paired:
            found = READERS[data.name](path, inventory)
            yield from with_sources(found, data.source_path, inventory)
        else:
            yield from READERS[data.name](path, inventory)
    except OSError as error:
        raise DataError(f"{error.filename or path}: {error.strerror}") from error


def _hold_out(images, number, path, inventory) -> dict[str, list[Found]]:
    """Samples the validation images; copies of an image stay in the same split."""
    if number >= len(images):
        raise DataError(
            f"data.holdout={number} of the {len(images)} images in {path} leaves "
            "none to train on: set --config.data.holdout to less"
        )
    order = mixed_order(len(images))
    copies = _Copies(images)
    held, seen = set(), set()
    for index in order:
        if len(held) == number:
            break
        if index not in seen:
            same = copies.of(index)
            seen |= same
            if len(held) + len(same) <= number:
                held |= same
    if not held:  # all have too many copies: split them; the report counts copies
        held = set(order[:number])
    if len(held) < number:
        inventory.notes.append(
            f"{len(held)} images held out, not data.holdout={number}: the others have "
            "too many copies"
        )
    return {
        "validation": [image for i, image in enumerate(images) if i in held],
        "train": [image for i, image in enumerate(images) if i not in held],
    }


class _Copies:
    """Finds images with the same bytes; reads only images of equal file size."""

    def __init__(self, images: list[Found]):
        self._images, self._digests = images, {}
        self._by_size = collections.defaultdict(list)
        for index, image in enumerate(images):
            self._by_size[image.size].append(index)

    def of(self, index: int) -> set[int]:
        """Returns the indices of images with the same bytes, including `index`."""
        size = self._images[index].size
        same = self._by_size[size]
        if size <= 0 or len(same) == 1 or size > MAX_BYTES:
            return {index}
        return {i for i in same if self._digest(i) == self._digest(index)}

    def _digest(self, index):
        if index not in self._digests:
            try:
                digest = _digest(self._images[index].read())
            except OSError:
                digest = index  # counts as unique
            self._digests[index] = digest
        return self._digests[index]


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def class_names(data, labels: set[str]) -> list[str]:
    """Returns the class names in order of their numbers.

    Names are in natural order: a2 before a10. If `.cls` files have numbers, these are
    the class numbers, and numbers that do not occur are classes without images.

    Raises:
      DataError: if numbers and names are mixed, or a number is too large.
    """
    numbers = {label for label in labels if label.isascii() and label.isdecimal()}
    if data.name != "tar" or not numbers:
        return sorted(labels, key=walk.natural_order)
    if names := labels - numbers:
        raise DataError(
            f".cls files have both numbers ({min(numbers)}) and names ({min(names)!r}):"
            " use one or the other"
        )
    largest = max(map(int, numbers))
    if largest > MAX_CLASS:
        raise DataError(f"class {largest} in a .cls file: number classes from 0 on")
    return [str(number) for number in range(largest + 1)]


class FileSet(BuiltInBuilder):
    """A TFDS set of image files, with their names, captions and any class labels."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, data, splits: dict[str, list[Found]], inventory: Inventory):
        """Takes the images by split, which are written when the set is prepared."""
        self.name = set_name(data)
        self._data, self._splits, self._inventory = data, splits, inventory
        labels: set[Any] = {i.label for images in splits.values() for i in images}
        if len(labels) > 1 and None in labels:
            without = sum(i.label is None for v in splits.values() for i in v)
            inventory.notes.append(
                f"{without} images have no class: the set has no labels"
            )
            labels = {None}
        self._classes = [] if None in labels else class_names(data, labels)
        self._sheet = ContactSheet(self._classes)  # shows training images
        self._train = array.array("Q")  # digests of training images
        self._others: list[tuple[int, str]] = []  # digests and names of other images
        super().__init__(data_dir=data.dir or None)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(),
            "name": tfds.features.Text(),
            "caption": tfds.features.Text(),
        }
        if self._data.source == "pairs":
            features["source"] = tfds.features.Image()
        if self._classes:
            features["label"] = tfds.features.ClassLabel(names=self._classes)
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Images of {walk.printable(str(_path(self._data)))}.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(),  # for the report
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        return {
            split: self._generate_examples(split, images)
            for split, images in self._splits.items()
        }

    def _generate_examples(self, split, images):
        inventory = self._inventory
        shown = progress.Bar(f"checking {split}", len(images))
        for image, encoded, shape, kind, source in self._examined(images):
            shown.update()
            if encoded is None:
                inventory.leave_out(image.name, kind)
                continue
            label = image.label if self._classes else None
            inventory.keep(split, label, bool(image.captions))
            sizes = zip(shape, height_and_width(self._data.resolution), strict=True)
            inventory.small += any(length < wanted for length, wanted in sizes)
            if kind:
                inventory.converted[kind] += 1
            digest = int.from_bytes(_digest(encoded)[:8], "little")
            if split == "train":
                self._train.append(digest)
                if self._sheet.wants(label):
                    self._sheet.add(label, decode(encoded, 3))
            else:
                self._others.append((digest, image.name))
            example = {
                "image": io.BytesIO(encoded),
                "name": image.name,
                "caption": image.captions,
            }
            if source is not None:
                example["source"] = io.BytesIO(source)
            if self._classes:
                example["label"] = label
            yield image.name, example
        shown.close()
        if not inventory.kept[split]:
            reasons = list(inventory.files_left_out.items())
            raise DataError(
                f"{split}: none of {len(images)} images can be read: {reasons[:3]}"
            )
        if split == list(self._splits)[-1]:
            self._finish()

    def _finish(self):
        """Writes the report to the temporary folder, which TFDS renames when done."""
        digests = np.array([digest for digest, _ in self._others], np.uint64)
        copied = np.isin(digests, np.frombuffer(self._train, np.uint64))
        for index in np.flatnonzero(copied):
            note = "images of other splits are copies of images in train"
            self._inventory.note(note, self._others[index][1])
        report = self._inventory.as_dict(self._classes)
        self.info.metadata.update(report)
        folder = pathlib.Path(self.data_dir)
        title = walk.printable(str(_path(self._data)))
        (folder / SUMMARY).write_text(summary(report, title) + "\n", "utf-8")
        self._sheet.write(folder / PICTURE)

    def _examined(self, images: Iterable[Found]) -> Iterator[tuple]:
        """Yields (image, bytes, (height, width), kind, bytes of any source image).

        Of images that cannot be used: image, Nones and in place of the kind the reason.
        """
        ahead = collections.deque()
        with ThreadPoolExecutor(max(self._data.threads, 1)) as pool:
            for image in images:
                ahead.append(pool.submit(_examine, image))
                if len(ahead) > 2 * max(self._data.threads, 1):
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()


def _examine(image: Found) -> tuple:
    """Reads and checks an image; returns what `FileSet._examined` yields."""
    if walk.suffix(image.name) in walk.RAW_SUFFIXES:
        return image, None, None, "a camera's raw file: convert it to JPEG or PNG", None
    if image.size > MAX_BYTES:
        return image, None, None, f"a file of more than {MAX_BYTES >> 20} MiB", None
    part = ""  # of the pair, for the reason
    try:
        encoded, source = image.read(), None
        shape, kind = examine(encoded)
        if image.source is not None:
            part = "source image: "
            source = image.source()
            _check_shapes(shape, examine(source)[0])
        return image, encoded, shape, kind, source
    except MemoryError:
        reason = "too large for memory"
    except OSError as error:
        reason = error.strerror or str(error)
    except (DecodeError, ValueError) as error:  # ValueError: a zero byte in a name
        reason = str(error)
    return image, None, None, part + " ".join(reason.split()), None


def _check_shapes(shape: tuple[int, int], source: tuple[int, int]) -> None:
    """Raises ValueError unless two images have the same ratio of sides, up to 2 %."""
    ratio = shape[0] * source[1] / (shape[1] * source[0])
    if not 1 / 1.02 <= ratio <= 1.02:
        raise ValueError(
            f"another ratio of sides: {source[0]} x {source[1]} for {shape[0]} x "
            f"{shape[1]}"
        )


def _path(data) -> pathlib.Path:
    return pathlib.Path(data.path).expanduser().absolute()


def set_name(data) -> str:
    """Returns the TFDS name of the set.

    It depends on the path, the holdout, and where source images are.
    """
    path = _path(data)
    about = f"{path}:{data.holdout}"
    if data.source == "pairs":
        about += f":pairs:{data.source_path}"
    digest = hashlib.sha256(os.fsencode(about)).hexdigest()[:8]
    stem = re.sub(r"\W+", "_", path.stem.lower(), flags=re.ASCII).strip("_")
    return f"{data.name}_{stem or 'images'}_{digest}"


def builder(data) -> FileSet:
    """Returns the builder of the set, whether it is prepared or not."""
    return FileSet(data, {}, Inventory())


def prepare(data) -> dict:
    """Prepares the images in `data.path` as a TFDS set, if it does not exist.

    Returns:
      The report (`Inventory.as_dict`), which is stored with the set.

    Raises:
      DataError: if there are no images, or none can be read.
    """
    if not builder(data).is_prepared():
        inventory = Inventory()
        splits = scan(data, inventory)
        made = FileSet(data, splits, inventory)
        try:
            made.write()
        except OSError as error:
            raise DataError(
                f"cannot write {made.data_dir}: {error.strerror or error}; choose "
                "another folder with --config.data.dir"
            ) from error
        for name, reason in list(inventory.files_left_out.items())[:10]:
            logging.warning("left out %s: %s", name, reason)
    return dict(builder(data).info.metadata)
