# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads a split of a TFDS data set in ArrayRecord format by index."""

from __future__ import annotations

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from rq.data import DataError
from rq.data.captions import split_lines
from rq.data.decode import DecodeError, decode

MAX_REPLACED = 100  # consecutive damaged images, from which on reading fails


class TFDSSource:
    """A split of a prepared TFDS data set.

    Item i is {'image': uint8 `[H, W, channels]`, 'label': int32}, with 'source' of the
    same form if it is wanted. An image that cannot be decoded is replaced by the next
    one, logged and counted, so that item i does not depend on what was read before.

    Attributes:
      replaced: indices that have been replaced so far.
    """

    def __init__(self, records, features, name: str, channels: int, images=None):
        """Takes records of serialized examples, and the TFDS features of the set.

        Args:
          records, features: the set.
          name: for messages.
          channels: 1 or 3.
          images: which features become 'image' and 'source', by these names; None:
            'image' alone.
        """
        self._records, self._name, self._channels = records, name, channels
        self._images = {"image": "image"} if images is None else images
        # Captions are parsed only when they are read, since parsing takes time.
        self._pixels, self._texts = (
            tfds.features.FeaturesDict({k: features[k] for k in names if k in features})
            for names in (
                (*self._images.values(), "label"),
                ("caption", "captions"),
            )
        )
        self.replaced: set[int] = set()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._find(index)[0]

    def read(self, index: int) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        """Returns an example and the captions of its (possibly replaced) image."""
        example, serialized = self._find(index)
        return example, self._captions_of(serialized)

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the captions: lines of the feature 'caption', or else 'captions'."""
        return self._captions_of(self._records[index])

    def _find(self, index):
        """Returns the first example from `index` on that decodes, and its record."""
        for offset in range(min(MAX_REPLACED, len(self))):
            at = (index + offset) % len(self)
            serialized = self._records[at]
            record = self._pixels.deserialize_example_np(
                serialized,
                decoders={
                    feature: tfds.decode.SkipDecoding()
                    for feature in self._images.values()
                },
            )
            try:
                images = {
                    name: decode(record[feature], self._channels)
                    for name, feature in self._images.items()
                }
            except DecodeError as error:
                self._replace(at, error)
                continue
            label = np.int32(record.get("label", 0))
            return images | {"label": label}, serialized
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
            lines = split_lines(text.decode() if isinstance(text, bytes) else text)
        else:
            lines = record.get("captions", ())
            lines = lines["text"] if isinstance(lines, dict) else lines
        return tuple(x.decode() if isinstance(x, bytes) else str(x) for x in lines)
