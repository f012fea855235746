# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Perceptual distance of images (LPIPS, Zhang et al. 2018) on any feature network.

With VGG16 and the learned heads it is LPIPS. With a small network trained on the same
data, and heads of ones, it needs no download. Both are frozen: only the images have
gradients. float32 throughout; training uses the default precision of products,
evaluation the highest.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

# VGG16: channels and number of convolutions of each block.
VGG16_WIDTHS = (64, 128, 256, 512, 512)
VGG16_CONVS = (2, 2, 3, 3, 3)
# Pixels x in [-1, 1] are normalised to (x - SHIFT) / SCALE for torchvision's VGG16.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
NORM_EPSILON = 1e-10  # added to the norm of a feature vector


class FeatureNetwork(nn.Module):
    """The convolutions of VGG: blocks of 3x3 convolutions and ReLU, with max pooling.

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
        """Returns each block's last feature map of images `[B, H, W, channels]`.

        That of block k is `[B, H / 2**k, W / 2**k, widths[k]]`, non-negative.
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
    """Averages the weighted squared distance of unit feature vectors over positions.

    Its parameters are those of `network`, the `shift` and `scale` of pixels, and
    `head_0`, `head_1`, ... (non-negative weights `[C_k]` of each block's channels).

    Attributes:
      widths, convs, precision: attributes of the `FeatureNetwork`.
      image_channels: input channels of the network; grey images are repeated to 3.
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
        """Returns distances float32 `[B]` of images `[B, H, W, C]` in [-1, 1]."""
        first, *others = self.layers(a, b)
        return sum(others, first)

    def layers(self, a: jax.Array, b: jax.Array) -> list[jax.Array]:
        """Returns each block's term of the distance, `[B]`."""
        return [
            jnp.mean(jnp.sum((x - y) ** 2 * head, axis=-1), axis=(1, 2))
            for x, y, head in zip(
                unit(self.features(a)), unit(self.features(b)), self.heads, strict=True
            )
        ]

    def features(self, images: jax.Array) -> list[jax.Array]:
        """Returns the feature maps of the network, see `FeatureNetwork`."""
        shape = (*images.shape[:-1], self.image_channels)
        return self.network((jnp.broadcast_to(images, shape) - self.shift) / self.scale)


def unit(features: Sequence[jax.Array]) -> list[jax.Array]:
    """Divides each vector by its norm; zero stays zero, with zero gradient."""

    def one(x):
        square = jnp.sum(x**2, axis=-1, keepdims=True)
        # The gradient of the square root is infinite at zero.
        norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
        return x / (norm + NORM_EPSILON)

    return [one(x) for x in features]


def own_distance(network_params, widths, convs, image_channels: int) -> tuple:
    """Returns the perceptual distance for a network trained on the data set itself.

    Args:
      network_params: parameters of a `FeatureNetwork` with these `widths` and `convs`.
      image_channels: image channels that it was trained with.

    Returns:
      A `PerceptualDistance` and its parameters, with heads of ones.
    """
    module = PerceptualDistance(widths, convs, image_channels)
    params = {
        "network": network_params,
        "shift": jnp.zeros(image_channels),
        "scale": jnp.ones(image_channels),
    }
    params |= {f"head_{k}": jnp.ones(width) for k, width in enumerate(widths)}
    return module, params
