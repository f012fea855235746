# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Ranks classes or texts by the likelihood of image files under them."""

from __future__ import annotations

from rq.data.file_source import FileSource
from rq.sampling import conditions


def rank(experiment, images, classes=(), texts=(), source=None) -> list[dict]:
    """Returns exact likelihoods of image files under several conditions.

    Args:
      experiment: a `rq.experiment.Experiment` with both stages.
      images: a file or folder; cropped at the centre.
      classes, texts: the conditions, see `conditions.parse`.
      source: source images, of a model that has them: a file or a folder.

    Returns:
      For each file 'file' and 'conditions', the likeliest first: 'class' and 'text' if
      the model has them, 'log_likelihood' of all codes in nats, and 'bits_per_code' by
      depth.

    Raises:
      ConfigError: if the model does not have the conditions.
      DataError: if no image can be read.
    """
    config = experiment.config
    sources = None if source is None else experiment.read_sources(source)
    asked = conditions.parse(config, experiment.tokenizer, classes, texts, sources)
    source = FileSource(images, config.data.channels)
    codes = experiment.codes_of(images)
    found = experiment.log_likelihoods(codes, asked.cond)
    positions = experiment.decoder.positions
    return [
        {"file": str(path), "conditions": asked.ranked(one, positions)}
        for path, one in zip(source.paths, found, strict=True)
    ]
