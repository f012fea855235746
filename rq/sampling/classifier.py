# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Classifiers that rank samples: images in, log-probabilities of the classes out."""

from __future__ import annotations

import functools

import jax

from rq.config import ConfigError
from rq.convert import resnet_weights
from rq.models.digest import digest
from rq.models.networks.resnet import preprocess


class Classifier:
    """Images `[B, Y, X, C]` in [-1, 1] to log-probabilities `[B, num_classes]`."""

    def __init__(self, model, params, prepare=lambda images: images):
        """Takes a network to logits, and what it wants done to images before."""
        self._params = params

        @jax.jit
        def classify(params, images):
            logits = model.apply({"params": params}, prepare(images))
            return jax.nn.log_softmax(logits)

        self._classify = classify

    def __call__(self, images: jax.Array) -> jax.Array:
        """See the class."""
        return self._classify(self._params, images)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the weights."""
        return digest(self._params)


def from_file(path, num_classes: int) -> Classifier:
    """A ResNet of torchvision's, from the file of `rq convert resnet`.

    Args:
      path: an `.npz`.
      num_classes: that it must have.

    Raises:
      DataError: where the file is missing or something else.
      ConfigError: where it has other classes.
    """
    model, params = resnet_weights.load(path)
    if model.num_classes != num_classes:
        raise ConfigError(
            f"--classifier={path} knows {model.num_classes} classes, "
            f"the experiment has {num_classes}"
        )
    return Classifier(model, jax.device_put(params), preprocess)
