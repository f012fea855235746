# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Images that samples are compared with: splits of the data set, or anything named."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterator

import numpy as np

from rq.config import ConfigError
from rq.data import loader, sources
from rq.evaluation import feature_sets
from rq.evaluation.extractors import Extractor


def split_batches(data, split: str) -> tuple[int, Iterator[np.ndarray]]:
    """How many images a split has, and these, uint8 `[<= B, R, R, C]`.

    Cropped at the centre.

    Raises:
      DataError: where the data set or the split is missing.
    """
    with data.unlocked():
        data = data.copy_and_resolve_references()
    data.augment = "center"
    source = sources.open_split(data, split)
    batches = loader.in_order(source, data, feature_sets.BATCH)
    return len(source), (batch["image"][batch["mask"]] for batch in batches)


def split_hash(data, split: str) -> str:
    """Of what `split_batches` yields: where it is read from, and how it is cropped."""
    about = f"{sources.fingerprint(data, split)} center {data.resolution}"
    return hashlib.sha256(f"{about} {data.channels}".encode()).hexdigest()


def find_reference(
    experiment, extractor: Extractor, name: str, cache=None
) -> tuple[feature_sets.FeatureSet | None, str]:
    """'train' or 'eval', splits of the experiment's own data set; or a path.

    Returns:
      the reference, in the first process alone; and a hash of what it is of.

    Raises:
      ConfigError: where it is neither.
      DataError: where it cannot be read.
    """
    data = experiment.config.data
    splits = {"train": data.train_split, "eval": data.eval_split}
    if name not in splits:
        if not pathlib.Path(name).exists():
            raise ConfigError(f"--reference={name} is neither train, eval nor a file")
        return feature_sets.reference(name, extractor, data.channels, cache)
    split = splits[name]
    about = split_hash(data, split)

    def collect():
        number, batches = split_batches(data, split)
        collector = feature_sets.Collector(number, logits=False)
        collector.add_all(extractor, batches)
        return collector.result()

    return feature_sets.cached(extractor, about, collect, cache), about
