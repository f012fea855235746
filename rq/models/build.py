# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The models that a config describes."""

from __future__ import annotations

from ml_collections import ConfigDict

from rq.models.rqvae import RQVAE
from rq.models.stack import StackConfig
from rq.models.transformer import RQTransformer


def rqvae_model(config: ConfigDict) -> RQVAE:
    """The RQ-VAE of a valid config."""
    return RQVAE(
        resolution=config.data.resolution,
        image_channels=config.data.channels,
        **config.rqvae.model,
    )


def condition_sizes(config: ConfigDict) -> tuple[int, int]:
    """Entries of the condition's embedding, and how many of them an image has.

    See `rq.sampling.conditions` for what they are.
    """
    text, dropped = config.transformer.text, config.transformer.condition_dropout > 0
    classes = config.data.num_classes + dropped
    return {
        "none": (1, 1),
        "class": (classes, 1),
        "text": (text.vocab_size, text.length),
        "class_text": (text.vocab_size + classes, 1 + text.length),
    }[config.transformer.condition]


def transformer_model(config: ConfigDict) -> RQTransformer:
    """The RQ-Transformer of a valid config, on the codes of its RQ-VAE."""
    rqvae = rqvae_model(config)
    num_conditions, condition_length = condition_sizes(config)
    settings = dict(config.transformer.model)
    settings["body"] = StackConfig(**settings["body"])
    settings["head"] = StackConfig(**settings["head"])
    return RQTransformer(
        code_shape=rqvae.code_shape,
        num_codes=rqvae.num_codes,
        input_dim=rqvae.code_dim,
        num_conditions=num_conditions,
        condition_length=condition_length,
        **settings,
    )
