# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Base class and tools of TFDS sets that rq builds itself, without TensorFlow."""

from __future__ import annotations

import io

import cv2
import numpy as np
import tensorflow_datasets as tfds
from absl import logging


class BuiltInBuilder(
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # type: ignore[call-arg]  # read by a base class of it
):
    """A TFDS set built from local files and written as ArrayRecord by `prepare`."""

    @classmethod
    def prepare(cls, data_dir: str | None = None) -> BuiltInBuilder:
        """Writes the data set if it does not exist, and returns its builder.

        TFDS writes to a temporary folder and renames it. An interrupted preparation
        leaves no partial set. If several processes prepare the set at once, the first
        to finish wins.
        """
        builder = cls(data_dir=data_dir or None)
        if not builder.is_prepared():
            builder.write()
        return builder

    def write(self) -> None:
        """Writes the data set, which does not exist; see `prepare`."""
        tfds.disable_progress_bar()
        try:
            self.download_and_prepare(file_format="array_record")
        except FileExistsError:
            logging.info("%s was prepared by another process", self.data_dir)


def encode_png(image: np.ndarray) -> io.BytesIO:
    """Encodes uint8 `[H, W, 1 or 3]` as PNG; TFDS would load TensorFlow for that."""
    if image.shape[-1] == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return io.BytesIO(cv2.imencode(".png", image)[1].tobytes())
