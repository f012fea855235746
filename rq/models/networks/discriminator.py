# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""PatchGAN discriminator (Isola et al. 2017, as VQGAN and the paper use it).

Dtypes: float32 throughout, batch statistics included.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

MOMENTUM = 0.9  # of the running statistics: share that stays
EPSILON = 1e-5
SLOPE = 0.2  # of the leaky ReLU


class BatchNorm(nn.Module):
    """PyTorch's batch norm: normalises by the biased variance, keeps the unbiased one.

    Flax's keeps the biased one. Means run over the global batch: with a sharded batch
    under `jit` they become all-reduces by themselves.
    """

    @nn.compact
    def __call__(self, x, train: bool):
        """`[B, H, W, C]`; in training, collection `batch_stats` must be mutable."""
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
    """N(mean, 0.02), as pix2pix initialises."""

    def init(key, shape, dtype=jnp.float32):
        return mean + 0.02 * jax.random.normal(key, shape, dtype)

    return init


class Discriminator(nn.Module):
    """Images to a map of logits, each of which judges a patch; real is positive.

    Attributes:
      ndf: channels of the first layer; they double from layer to layer, up to 8 ndf.
      layers: convolutions that halve the resolution; two more keep it.
    """

    ndf: int = 64
    layers: int = 2

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Images `[B, R, R, channels]` in [-1, 1] to logits `[B, r, r]`.

        r = R / 2**layers - 2. In training it normalises by the batch and moves the
        running statistics (`mutable=["batch_stats"]`).

        Raises:
          ValueError: where the images are too small to leave a logit.
        """
        if min(images.shape[1:3]) // 2**self.layers < 3:
            raise ValueError(
                f"images {images.shape[1:3]} leave no logit after {self.layers} layers"
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
