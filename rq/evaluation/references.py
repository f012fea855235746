# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds the images that samples are compared with: splits of the data set, or files."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterator

from rq.config import ConfigError
from rq.data import loader, sources
from rq.evaluation import feature_sets
from rq.evaluation.extractors import Extractor, Found
from rq.parallel import processes


def split_features(
    data, split: str, extractor: Extractor, limit: int | None = None
) -> tuple[int, Iterator[Found]]:
    """Returns the number of images of a split, and an iterator over their features.

    Args:
      data: the config's section `data`.
      split: name of the split; its images are cropped at the centre.
      extractor: the `Extractor`; each process reads the images for its own devices.
      limit: number of images, at most; all if None.

    Raises:
      DataError: if the data set or the split is missing.
    """
    with data.unlocked():
        data = data.copy_and_resolve_references()
    data.augment = "center"
    source = sources.open_split(data, split)
    number = min(len(source), limit or len(source))
    size = extractor.batch_size(feature_sets.BATCH, number)
    batches = loader.in_order(source, data, size, mesh=extractor.mesh, stop=number)
    return number, map(extractor.of_batch, batches)


def split_hash(data, split: str) -> str:
    """Returns a hash of a split's images and of how they are cropped.

    All processes must call it; process 0 reads the images.
    """

    def compute():
        about = f"{sources.fingerprint(data, split)} center {data.resolution}"
        return hashlib.sha256(f"{about} {data.channels}".encode()).hexdigest()

    return processes.digest_from_process_0(compute)


def find_reference(
    experiment, extractor: Extractor, name: str, cache=None
) -> tuple[feature_sets.FeatureSet | None, str]:
    """Returns the reference of a name, and a hash of its images.

    Args:
      experiment: an `rq.experiment.Experiment`.
      extractor: the `Extractor`.
      name: 'train' or 'eval', splits of the experiment's data set; or a path.
      cache: see `feature_sets.cached`.

    Returns:
      The reference, or None in other processes than 0; and the hash.

    Raises:
      ConfigError: if `name` is neither a split nor a path.
      DataError: if the reference cannot be read.
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
        number, features = split_features(data, split, extractor)
        return feature_sets.collect(features, number, logits=False)

    return feature_sets.cached(extractor, about, collect, cache), about
