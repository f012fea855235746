# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""A small classifier whose feature maps are used for perceptual distances."""

from __future__ import annotations

import flax.linen as nn
import jax

from rq.models.networks.lpips import FeatureNetwork


class FeatureClassifier(nn.Module):
    """Classifies images by a linear layer on the averaged last feature map.

    Attributes:
      widths, convs: attributes of the `FeatureNetwork`.
      num_classes: number of logits.
      precision: of the products, see `FeatureNetwork`.
    """

    widths: tuple[int, ...]
    convs: tuple[int, ...]
    num_classes: int
    precision: str | None = None

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits `[B, num_classes]` of images `[B, H, W, C]` in [-1, 1]."""
        return self.pool_and_logits(images)[1]

    @nn.compact
    def pool_and_logits(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the averaged feature map `[B, widths[-1]]`, and the logits."""
        network = FeatureNetwork(
            self.widths, self.convs, self.precision, name="network"
        )
        pool = network(images)[-1].mean(axis=(1, 2))
        dense = nn.Dense(self.num_classes, name="head", precision=self.precision)
        return pool, dense(pool)
