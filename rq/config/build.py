# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The models that a config describes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ml_collections import ConfigDict

if TYPE_CHECKING:
    from rq.models import RQVAE, RQTransformer

# JAX is imported by the functions, so that a mistake on the command line is told at
# once, and before anything touches a device.


def rqvae_model(config: ConfigDict) -> RQVAE:
    """The RQ-VAE of a valid config."""
    from rq.models import RQVAE

    return RQVAE(
        resolution=config.data.resolution,
        image_channels=config.data.channels,
        **config.rqvae.model,
    )


def condition_sizes(config: ConfigDict) -> tuple[int, int]:
    """Entries of the condition's embedding, and how many of them an image has.

    See `rq.stages.conditions` for what they are.
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
    from rq.models import RQTransformer, StackConfig

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
