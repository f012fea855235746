# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the two built-in sets, `digits` and `emoji`, share: they prepare themselves."""

from __future__ import annotations

import io
import random

import cv2
import numpy as np
import tensorflow_datasets as tfds
from absl import logging


class BuiltInBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS set made of what is installed, written as ArrayRecord, without TensorFlow.

    `prepare` is the way to it.
    """

    @classmethod
    def prepare(cls, data_dir: str | None = None) -> BuiltInBuilder:
        """Writes the set where it is not there yet, and returns its builder.

        TFDS writes to a folder of another name and renames it, so that an interrupted
        preparation leaves nothing that looks like the set, and of several processes
        that prepare it at once the first to finish decides.
        """
        builder = cls(data_dir=data_dir or None)
        if not builder.is_prepared():
            try:
                builder.download_and_prepare(file_format="array_record")
            except FileExistsError:
                logging.info("%s was prepared by another process", builder.data_dir)
        return builder


def encode_png(image: np.ndarray) -> io.BytesIO:
    """uint8 `[H, W, 1 or 3]` to a PNG; TFDS itself would load TensorFlow for that."""
    if image.shape[-1] == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return io.BytesIO(cv2.imencode(".png", image)[1])


def mixed_order(number: int) -> list[int]:
    """A fixed permutation of `range(number)`.

    Drawn by Python's generator, whose `random()` is the same in every version; NumPy
    promises that of no permutation.
    """
    generator = random.Random(0)
    keys = [generator.random() for _ in range(number)]
    return sorted(range(number), key=keys.__getitem__)
