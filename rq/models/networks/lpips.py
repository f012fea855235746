# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Perceptual distance of images (LPIPS, Zhang et al. 2018), on any stack of features.

With VGG16's features and the learned heads it is LPIPS itself; with the features of a
small network trained on the data at hand, and heads of one, it needs no download. Both
are frozen: gradients run to the images alone. float32 throughout; training takes the
backend's precision of products, evaluation the highest.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

# Of VGG16: channels and convolutions of the blocks, each at half the resolution.
VGG16_WIDTHS = (64, 128, 256, 512, 512)
VGG16_CONVS = (2, 2, 3, 3, 3)
# What [-1, 1] becomes in front of torchvision's VGG16: (x - SHIFT) / SCALE.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
NORM_EPSILON = 1e-10  # in front of the division by a feature vector's length


class FeatureNetwork(nn.Module):
    """VGG's convolutions: blocks of 3x3 convolutions with ReLU, 2x2 maxima between.

    Attributes:
      widths: channels of each block.
      convs: convolutions of each block.
      precision: of the products; 'highest' where numbers are reported, because
        accelerators round to bfloat16 or TF32 otherwise.
    """

    widths: tuple[int, ...] = VGG16_WIDTHS
    convs: tuple[int, ...] = VGG16_CONVS
    precision: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array) -> list[jax.Array]:
        """Images `[B, R, R, channels]` to the last feature map of each block.

        Block k (from 0): `[B, R / 2**k, R / 2**k, widths[k]]`, not negative.
        """
        x, features = images, []
        for block, (width, convs) in enumerate(
            zip(self.widths, self.convs, strict=True)
        ):
            if block:
                x = nn.max_pool(x, (2, 2), (2, 2))
            for j in range(convs):
                name = f"block_{block}_conv_{j}"
                x = nn.Conv(
                    width,
                    (3, 3),
                    padding=1,
                    precision=self.precision,
                    kernel_init=nn.with_logical_partitioning(
                        nn.initializers.he_normal(),
                        (None, None, "conv_in", "conv_out"),
                    ),
                    bias_init=nn.with_logical_partitioning(
                        nn.initializers.zeros, ("conv_out",)
                    ),
                    name=name,
                )(x)
                x = nn.relu(x)
            features.append(x)
        return features


class PerceptualDistance(nn.Module):
    """Weighted squared distance of unit feature vectors, averaged over positions.

    Its parameters are those of `network`, and `shift` and `scale` (of pixels) and
    `head_0`, `head_1`, ... (weights `[C_k]` of each block's channels, not negative).

    Attributes:
      widths, convs, precision: of the `FeatureNetwork`.
      image_channels: that the network takes; a grey image is repeated where it is 3.
    """

    widths: tuple[int, ...] = VGG16_WIDTHS
    convs: tuple[int, ...] = VGG16_CONVS
    image_channels: int = 3
    precision: str | None = None

    def setup(self):
        channels, ones = (self.image_channels,), nn.initializers.ones
        self.network = FeatureNetwork(self.widths, self.convs, self.precision)
        self.shift = self.param("shift", nn.initializers.zeros, channels)
        self.scale = self.param("scale", ones, channels)
        self.heads = [
            self.param(f"head_{k}", ones, (width,))
            for k, width in enumerate(self.widths)
        ]

    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """The distance of images `[B, R, R, channels]` in [-1, 1]: float32 `[B]`."""
        return sum(self.layers(a, b))

    def layers(self, a: jax.Array, b: jax.Array) -> list[jax.Array]:
        """Each block's part of the distance, `[B]`."""
        return [
            jnp.mean(jnp.sum((x - y) ** 2 * head, axis=-1), axis=(1, 2))
            for x, y, head in zip(
                unit(self.features(a)), unit(self.features(b)), self.heads, strict=True
            )
        ]

    def features(self, images: jax.Array) -> list[jax.Array]:
        """The feature maps of the frozen network, as `FeatureNetwork` returns them."""
        shape = (*images.shape[:-1], self.image_channels)
        return self.network((jnp.broadcast_to(images, shape) - self.shift) / self.scale)


def unit(features: Sequence[jax.Array]) -> list[jax.Array]:
    """Each vector divided by its length; zero stays zero, with gradient zero."""

    def one(x):
        square = jnp.sum(x**2, axis=-1, keepdims=True)
        # The square root has no derivative at zero, where all features are off.
        length = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
        return x / (length + NORM_EPSILON)

    return [one(x) for x in features]


def own_distance(network_params, widths, convs, image_channels: int) -> tuple:
    """The distance on a network trained on the data set itself.

    Args:
      network_params: of a `FeatureNetwork` with these `widths` and `convs`.
      image_channels: that it was trained with.

    Returns:
      a `PerceptualDistance` and its parameters, every head being one.
    """
    module = PerceptualDistance(widths, convs, image_channels)
    params = {
        "network": network_params,
        "shift": jnp.zeros(image_channels),
        "scale": jnp.ones(image_channels),
    }
    params |= {f"head_{k}": jnp.ones(width) for k, width in enumerate(widths)}
    return module, params
