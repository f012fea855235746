# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Builds the models that a config describes."""

from __future__ import annotations

from ml_collections import ConfigDict

from rq.config import ConfigError
from rq.models.networks.feature_classifier import FeatureClassifier
from rq.models.networks.lpips import PerceptualDistance
from rq.models.rqvae import RQVAE
from rq.models.stack import StackConfig
from rq.models.transformer import RQTransformer

ROTATIONS = 4  # classes of the feature network's objective 'rotation'


def rqvae_model(config: ConfigDict) -> RQVAE:
    """Returns the RQ-VAE of a valid config."""
    return RQVAE(
        resolution=config.data.resolution,
        image_channels=config.data.channels,
        **config.rqvae.model,
    )


def feature_classifier(config: ConfigDict) -> FeatureClassifier:
    """Returns the feature network of a valid config, with its classifier."""
    options = config.features
    rotates = options.objective == "rotation"
    classes = ROTATIONS if rotates else config.data.num_classes
    return FeatureClassifier(options.model.widths, options.model.convs, classes)


def perceptual_distance(config: ConfigDict) -> PerceptualDistance | None:
    """Returns the perceptual distance of stage 1's loss; None if it has none."""
    kind = config.rqvae.loss.perceptual
    if kind == "lpips":
        return PerceptualDistance()
    if kind == "features":
        model = config.features.model
        return PerceptualDistance(model.widths, model.convs, config.data.channels)
    return None


def condition_sizes(config: ConfigDict) -> tuple[int, int]:
    """Returns the size of the condition's embedding table and its tokens per image.

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


def code_dim(config: ConfigDict) -> int:
    """Returns the length of the code vectors of a valid config."""
    if config.transformer.codes_file:  # no feature map is packed into them
        return config.rqvae.model.embed_dim
    return rqvae_model(config).code_dim


def source_sizes(config: ConfigDict) -> tuple[tuple[int, int, int] | None, int]:
    """Returns the shape of a source image's codes, and the length of their vectors.

    They are (None, 0) without source images.

    Raises:
      ConfigError: if they have an RQ-VAE of their own whose shapes are not known yet.
    """
    part = config.transformer
    if config.data.source == "none":
        return None, 0
    if not part.source_rqvae:
        return rqvae_model(config).code_shape, code_dim(config)
    if len(part.source_shape) != 3:
        raise ConfigError(
            "the shapes of transformer.source_rqvae are not known: rq train finds them"
        )
    return part.source_shape, part.source_dim


def transformer_model(config: ConfigDict) -> RQTransformer:
    """Returns the RQ-Transformer of a valid config, on the codes of its RQ-VAE."""
    rqvae = rqvae_model(config)
    num_conditions, condition_length = condition_sizes(config)
    source_shape, source_dim = source_sizes(config)
    settings = dict(config.transformer.model)
    settings["body"] = StackConfig(**settings["body"])
    settings["head"] = StackConfig(**settings["head"])
    return RQTransformer(
        code_shape=rqvae.code_shape,
        num_codes=rqvae.num_codes,
        input_dim=code_dim(config),
        num_conditions=num_conditions,
        condition_length=condition_length,
        any_order=config.transformer.order != "raster",
        source_shape=source_shape,
        source_dim=source_dim,
        **settings,
    )
