# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Draws samples of an experiment, for tests of all that sampling goes through."""

from rq.config import SamplingConfig
from rq.sampling import conditions, rejection


def draw(experiment, number, classes=(), *, keep=1.0, classifier=None, **options):
    """Returns samples on the host; `options` are fields of `SamplingConfig`."""
    asked = conditions.parse(experiment.config, experiment.tokenizer, classes)
    config = SamplingConfig(**experiment.config.sampling).replace(**options)
    if keep != 1 and classifier is None:
        classifier = experiment.classifier
    return rejection.collect(
        rejection.draw(
            experiment.sampler,
            asked,
            number,
            config,
            keep=keep,
            classifier=classifier,
        )
    )
