# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""PatchGAN discriminator (Isola et al. 2017), as in VQGAN and the paper.

Dtypes: float32 throughout, batch statistics included.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

MOMENTUM = 0.9  # of the running statistics: fraction that is kept
EPSILON = 1e-5
SLOPE = 0.2  # of the leaky ReLU


class BatchNorm(nn.Module):
    """PyTorch's batch norm: normalises by the biased variance, stores the unbiased one.

    Flax's stores the biased one. Statistics are those of the global batch: under `jit`
    with a sharded batch, the means become all-reduces.
    """

    @nn.compact
    def __call__(self, x, train: bool):
        """Normalises `[B, H, W, C]`; in training, `batch_stats` must be mutable."""
        channels = x.shape[-1:]
        axes = ("conv_in",)
        scale = self.param(
            "scale",
            nn.with_logical_partitioning(_normal(mean=1.0), axes),
            channels,
        )
        bias = self.param(
            "bias", nn.with_logical_partitioning(nn.initializers.zeros, axes), channels
        )
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        mean, var = running_mean.value, running_var.value
        if train:
            mean = jnp.mean(x, axis=(0, 1, 2))
            var = jnp.mean((x - mean) ** 2, axis=(0, 1, 2))
        if train and not self.is_initializing():
            count = x.size // x.shape[-1]
            unbiased = var * (count / max(count - 1, 1))
            for running, now in ((running_mean, mean), (running_var, unbiased)):
                kept = MOMENTUM * running.value
                running.value = kept + (1 - MOMENTUM) * jax.lax.stop_gradient(now)
        return (x - mean) * jax.lax.rsqrt(var + EPSILON) * scale + bias


def _normal(mean: float = 0.0):
    """Returns the initializer of pix2pix, N(mean, 0.02)."""

    def init(key, shape, dtype=jnp.float32):
        return mean + 0.02 * jax.random.normal(key, shape, dtype)

    return init


class Discriminator(nn.Module):
    """Classifies patches of images as real (positive logits) or generated.

    Attributes:
      ndf: channels of the first layer; they double in every layer, up to 8 ndf.
      layers: number of convolutions with stride 2; two more have stride 1.
    """

    ndf: int = 64
    layers: int = 2

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits `[B, h, w]` of images `[B, H, W, channels]` in [-1, 1].

        h = H / 2**layers - 2, w likewise. In training it normalises by batch statistics
        and updates the running statistics (`mutable=["batch_stats"]`).

        Raises:
          ValueError: if the images are too small for one logit.
        """
        if min(images.shape[1:3]) // 2**self.layers < 3:
            raise ValueError(
                f"images {images.shape[1:3]} are too small for {self.layers} layers"
            )

        def conv(x, features, stride, bias, index):
            return nn.Conv(
                features,
                (4, 4),
                strides=stride,
                padding=1,
                use_bias=bias,
                kernel_init=nn.with_logical_partitioning(
                    _normal(), (None, None, "conv_in", "conv_out")
                ),
                bias_init=nn.with_logical_partitioning(
                    nn.initializers.zeros, ("conv_out",)
                ),
                name=f"conv_{index}",
            )(x)

        x = nn.leaky_relu(conv(images, self.ndf, 2, True, 0), SLOPE)
        for layer in range(1, self.layers + 1):
            stride = 2 if layer < self.layers else 1
            features = self.ndf * min(2**layer, 8)
            x = conv(x, features, stride, False, layer)
            x = nn.leaky_relu(BatchNorm(name=f"norm_{layer}")(x, train), SLOPE)
        return conv(x, 1, 1, True, self.layers + 1)[..., 0]
