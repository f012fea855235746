# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Ranks classes or texts by the likelihood of image files under them."""

from __future__ import annotations

import numpy as np

from rq.data.file_source import FileSource
from rq.parallel import sharding
from rq.sampling import conditions, likelihood


def rank(experiment, images, classes=(), texts=()) -> list[dict]:
    """Returns exact likelihoods of image files under several conditions.

    Args:
      experiment: a `rq.experiment.Experiment` with both stages.
      images: a file or folder; cropped at the centre.
      classes, texts: the conditions, see `conditions.parse`.

    Returns:
      For each file 'file' and 'conditions', the likeliest first: 'class' and 'text' if
      the model has them, 'log_likelihood' of all codes in nats, and 'bits_per_code' by
      depth.

    Raises:
      ConfigError: if the model does not have the conditions.
      DataError: if no image can be read.
    """
    config, model = experiment.config, experiment.transformer.model
    asked = conditions.parse(config, experiment.tokenizer, classes, texts)
    source = FileSource(images, config.data.channels)
    codes = experiment.codes_of(images)
    variables = experiment.transformer_state.model_variables()
    parts = sharding.batch_parts(experiment.mesh)
    size = -(-min(config.sampling.batch_size, len(codes)) // parts) * parts
    found = []
    for start in range(0, len(codes), size):
        part = codes[start : start + size]
        batch = {"codes": np.resize(part, (size, *part.shape[1:]))}  # one shape
        with sharding.context(experiment.mesh):
            batch = sharding.shard_batch(batch, experiment.mesh, whole=True)
            by_condition = likelihood.by_condition(
                model,
                variables["params"],
                variables["codebook"]["state"].embedding,
                batch["codes"],
                asked.cond,
            )
        found.append(sharding.to_host(by_condition)[: len(part)])
    return [
        {"file": str(path), "conditions": asked.ranked(one, model.positions)}
        for path, one in zip(source.paths, np.concatenate(found), strict=True)
    ]
