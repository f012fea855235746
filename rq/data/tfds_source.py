# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""A split of a data set that TFDS prepared as ArrayRecord, read by index."""

from __future__ import annotations

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from rq.data import DataError
from rq.data.captions import split_lines
from rq.data.decode import DecodeError, decode

MAX_REPLACED = 100  # images in a row that may be damaged before it is an error


class TFDSSource:
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
        for offset in range(min(MAX_REPLACED, len(self))):
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
            lines = split_lines(text.decode() if isinstance(text, bytes) else text)
        else:
            lines = record.get("captions", ())
            lines = lines["text"] if isinstance(lines, dict) else lines
        return tuple(x.decode() if isinstance(x, bytes) else str(x) for x in lines)
