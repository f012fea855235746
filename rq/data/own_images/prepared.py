# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Folders, tar shards and tables, prepared once as a TFDS data set.

Preparing decodes every image strictly, once. What cannot be decoded is left out, what
must be converted is kept as it is and converted whenever it is read. Every file is
counted: in the set's `metadata.json`, and for a person in `summary.txt` and
`first_images.png` beside it.
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

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from rq.data import DataError, walk
from rq.data.built_in import BuiltInBuilder, mixed_order
from rq.data.decode import DecodeError, decode, examine
from rq.data.own_images.contact_sheet import ContactSheet
from rq.data.own_images.inventory import Inventory, summary
from rq.data.own_images.readers import READERS, Found

SUMMARY, PICTURE = "summary.txt", "first_images.png"
MAX_BYTES = 1 << 28  # of an image file
MAX_CLASS = 1 << 20  # largest number of a class


def scan(data, inventory: Inventory) -> dict[str, list[Found]]:
    """Finds the images of `data.path`, by split, `train` first.

    Where there are no splits, `data.holdout` of them, drawn once for all, become
    'validation'; files with the same bytes stay together.

    Raises:
      DataError: where the path is missing, has no images, or too few of them.
    """
    path = _path(data)
    if not path.exists():
        raise DataError(f"data.path={data.path!r}: there is no such file or folder")
    splits, names = collections.defaultdict(list), set()
    for image in _read(data.name, path, inventory):
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


def _read(name: str, path: pathlib.Path, inventory: Inventory) -> Iterator[Found]:
    """Yields what a reader finds; what it cannot open is an error of one line."""
    try:
        yield from READERS[name](path, inventory)
    except OSError as error:
        raise DataError(f"{error.filename or path}: {error.strerror}") from error


def _hold_out(images, number, path, inventory) -> dict[str, list[Found]]:
    """Draws the images to validate with; copies of an image go where it goes."""
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
    if not held:  # each has too many copies: as drawn, which the report counts
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
    """Images with the same bytes; only those of one size are read to be compared."""

    def __init__(self, images: list[Found]):
        self._images, self._digests = images, {}
        self._by_size = collections.defaultdict(list)
        for index, image in enumerate(images):
            self._by_size[image.size].append(index)

    def of(self, index: int) -> set[int]:
        """Returns the indices of images with the bytes of this one, itself included."""
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
                digest = index  # is no copy of anything
            self._digests[index] = digest
        return self._digests[index]


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def class_names(data, labels: set[str]) -> list[str]:
    """Returns the names of classes in the order of their numbers.

    Names sort naturally: a2 before a10. Where `.cls` files have numbers, a class is
    that number, and numbers that do not occur are classes without images.

    Raises:
      DataError: where numbers and names are mixed, or a number is too large.
    """
    numbers = {label for label in labels if label.isascii() and label.isdecimal()}
    if data.name != "tar" or not numbers:
        return sorted(labels, key=walk.natural_order)
    if names := labels - numbers:
        raise DataError(
            f".cls files hold numbers, as {min(numbers)}, and names, as {min(names)!r}:"
            " use one or the other"
        )
    largest = max(map(int, numbers))
    if largest > MAX_CLASS:
        raise DataError(f"class {largest} in a .cls file: number classes from 0 on")
    return [str(number) for number in range(largest + 1)]


class FileSet(BuiltInBuilder):
    """Images of files, with name, captions and, where they have classes, label."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, data, splits: dict[str, list[Found]], inventory: Inventory):
        """A set that is filled with `splits` when it is prepared."""
        self.name = set_name(data)
        self._data, self._splits, self._inventory = data, splits, inventory
        labels = {i.label for images in splits.values() for i in images}
        if len(labels) > 1 and None in labels:
            without = sum(i.label is None for v in splits.values() for i in v)
            inventory.notes.append(
                f"{without} images have no class: the set has no labels"
            )
            labels = {None}
        self._classes = [] if None in labels else class_names(data, labels)
        self._sheet = ContactSheet(self._classes)  # of images to train on
        self._train = array.array("Q")  # digests
        self._others: list[tuple[int, str]] = []  # of other splits, with names
        super().__init__(data_dir=data.dir or None)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(),
            "name": tfds.features.Text(),
            "caption": tfds.features.Text(),
        }
        if self._classes:
            features["label"] = tfds.features.ClassLabel(names=self._classes)
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Images of {walk.printable(str(_path(self._data)))}.",
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
        inventory = self._inventory
        for image, encoded, shape, kind in self._examined(images):
            if encoded is None:
                inventory.leave_out(image.name, kind)
                continue
            label = image.label if self._classes else None
            inventory.keep(split, label, bool(image.captions))
            inventory.small += min(shape) < self._data.resolution
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
            if self._classes:
                example["label"] = label
            yield image.name, example
        if not inventory.kept[split]:
            reasons = list(inventory.files_left_out.items())
            raise DataError(
                f"{split}: none of {len(images)} images can be read: {reasons[:3]}"
            )
        if split == list(self._splits)[-1]:
            self._finish()

    def _finish(self):
        """Writes the report, into the folder that is renamed when the set is whole."""
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
        """Images with bytes, (height, width) and kind; or None twice and the reason."""
        ahead = collections.deque()
        with ThreadPoolExecutor(max(self._data.threads, 1)) as pool:
            for image in images:
                ahead.append(pool.submit(_examine, image))
                if len(ahead) > 2 * max(self._data.threads, 1):
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()


def _examine(image: Found) -> tuple:
    """An image as `FileSet._examined` yields it."""
    if walk.suffix(image.name) in walk.RAW_SUFFIXES:
        return image, None, None, "a camera's raw file: convert it to JPEG or PNG"
    if image.size > MAX_BYTES:
        return image, None, None, f"a file of more than {MAX_BYTES >> 20} MiB"
    try:
        encoded = image.read()
        return image, encoded, *examine(encoded)
    except MemoryError:
        return image, None, None, "too large for the memory"
    except OSError as error:
        reason = error.strerror or str(error)
    except (DecodeError, ValueError) as error:  # ValueError: a zero byte in a name
        reason = str(error)
    return image, None, None, " ".join(reason.split())


def _path(data) -> pathlib.Path:
    return pathlib.Path(data.path).expanduser().absolute()


def set_name(data) -> str:
    """The TFDS name of what `data.path` names: another path or holdout is another."""
    path = _path(data)
    digest = hashlib.sha256(os.fsencode(f"{path}:{data.holdout}")).hexdigest()[:8]
    stem = re.sub(r"\W+", "_", path.stem.lower(), flags=re.ASCII).strip("_")
    return f"{data.name}_{stem or 'images'}_{digest}"


def builder(data) -> FileSet:
    """The set as it lies on disk, prepared or not."""
    return FileSet(data, {}, Inventory())


def prepare(data) -> dict:
    """Prepares what `data.path` names, where that is not done yet.

    Returns:
      the report (`Inventory.as_dict`), which is stored with the set.

    Raises:
      DataError: where there are no images, or none that can be read.
    """
    if not builder(data).is_prepared():
        inventory = Inventory()
        splits = scan(data, inventory)
        made = FileSet(data, splits, inventory)
        try:
            made.download_and_prepare(file_format="array_record")
        except FileExistsError:
            logging.info("%s was prepared by another process", made.data_dir)
        except OSError as error:
            raise DataError(
                f"preparing in {made.data_dir}: {error.strerror or error}; data.dir "
                "names another place"
            ) from error
        for name, reason in list(inventory.files_left_out.items())[:10]:
            logging.warning("left out %s: %s", name, reason)
    return dict(builder(data).info.metadata)
