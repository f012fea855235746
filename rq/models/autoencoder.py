# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Encoder and decoder of the RQ-VAE: VQGAN's convolutional networks (appendix A).

Residual blocks with GroupNorm and swish, single-head attention at chosen resolutions,
strided convolutions with padding on the right and bottom only, nearest upsampling.
Initialised as PyTorch initialises its convolutions, as the authors' are.

Dtypes: parameters float32; convolutions in `dtype`; norms and the softmax in float32
(in float64 where `dtype` is, which tests of gradients use).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rq.models import channel_sums
from rq.models.activations import swish

GROUPS = 32  # of every GroupNorm, so each width is a multiple of it


def uniform_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """Returns PyTorch's default initialiser: uniform within ±1/sqrt(fan_in)."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _enlarged_kernel(kernel):
    """Returns the kernel `[2, 2, C, 4 F]` of `_convolve_enlarged` for `[3, 3, C, F]`.

    Two of three rows, and columns, of a window read the same row of the small image:
    the last two where the window starts at an odd row, otherwise the first two.
    """

    def merged(kernel, axis):  # [2 parities, ..., 2 rows, ...]
        first, middle, last = jnp.split(kernel, 3, axis)
        even = jnp.concatenate([first, middle + last], axis)
        return jnp.stack([even, jnp.concatenate([first + middle, last], axis)])

    kernel = merged(merged(kernel, 0), 2)  # [2, 2, 2, 2, C, F], parities first
    kernel = jnp.moveaxis(kernel, (0, 1), (-2, -3))
    return kernel.reshape(*kernel.shape[:3], -1)


def _convolve_enlarged(convolve, x, kernel):
    """Returns a 3 x 3 convolution of x, enlarged twice by repetition of its pixels.

    In 4 / 9 of the multiplications, since the small image is read: an output pixel sees
    2 x 2 of its pixels, with kernels of their own for odd and even rows and columns.

    Args:
      convolve: function of an image and a kernel, without padding.
      x: `[B, H, W, C]`.
      kernel: `[3, 3, C, F]`.

    Returns:
      `[B, 2 H, 2 W, F]`.
    """
    batch, height, width, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = convolve(x, _enlarged_kernel(kernel))  # [B, H + 1, W + 1, 4 F]
    y = y.reshape(*y.shape[:3], 2, 2, -1)
    rows = [
        jnp.stack([y[:, a : height + a, b : width + b, a, b] for b in range(2)], axis=3)
        for a in range(2)
    ]
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, -1)


class _Convolution(nn.Module):
    """`nn.Conv` over two axes, with a gradient of its bias that is fast on CPU."""

    features: int
    kernel: int
    stride: int
    padding: Any
    enlarge: bool
    dtype: Any

    @nn.compact
    def __call__(self, x):
        channels, side = x.shape[-1], self.kernel
        init = uniform_fan_in(side**2 * channels)
        axes = (None, None, "conv_in", "conv_out")
        kernel: Any = self.param(
            "kernel",
            nn.with_logical_partitioning(init, axes),
            (side, side, channels, self.features),
        )
        bias: Any = self.param(
            "bias", nn.with_logical_partitioning(init, axes[-1:]), (self.features,)
        )

        def convolve(x, kernel, padding=((0, 0), (0, 0))):
            return jax.lax.conv_general_dilated(
                x.astype(self.dtype),
                kernel.astype(self.dtype),
                (self.stride, self.stride),
                padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )

        if self.enlarge:
            y = _convolve_enlarged(convolve, x, kernel)
        else:
            y = convolve(x, kernel, self.padding)
        return channel_sums.add_bias(y, bias.astype(self.dtype))


class Conv(nn.Module):
    """A k x k convolution with bias, `[B, H, W, C]` to `[B, H', W', features]`.

    With `enlarge` it reads the image enlarged twice by nearest neighbours (k = 3).
    """

    features: int
    kernel: int = 3
    stride: int = 1
    padding: Any = None
    enlarge: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        side, padding = self.kernel // 2, self.padding
        if padding is None:
            padding = ((side, side), (side, side))
        settings = (self.features, self.kernel, self.stride, padding, self.enlarge)
        return _Convolution(*settings, self.dtype, name="conv")(x)


def at_least_float32(dtype) -> jnp.dtype:
    """Returns float32, or float64 where `dtype` is float64."""
    return jnp.promote_types(dtype, jnp.float32)


class GroupNorm(nn.Module):
    """GroupNorm with float32 statistics in two passes, as the authors'."""

    dtype: Any

    @nn.compact
    def __call__(self, x):
        wide = at_least_float32(self.dtype)
        axes, shape = ("conv_in",), x.shape[-1:]
        ones, zeros = (
            nn.with_logical_partitioning(init, axes)
            for init in (nn.initializers.ones, nn.initializers.zeros)
        )
        scale: Any = self.param("scale", ones, shape)
        bias: Any = self.param("bias", zeros, shape)
        return channel_sums.group_norm(
            x.astype(wide), scale.astype(wide), bias.astype(wide), GROUPS, 1e-6
        )


class ResidualBlock(nn.Module):
    """Adds (norm, swish, convolution) × 2 to a shortcut, 1 × 1 if widths differ."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        h = swish(GroupNorm(self.dtype, name="norm1")(x)).astype(self.dtype)
        h = Conv(self.features, dtype=self.dtype, name="conv1")(h)
        h = swish(GroupNorm(self.dtype, name="norm2")(h)).astype(self.dtype)
        h = Conv(self.features, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, dtype=self.dtype, name="nin_shortcut")(x)
        return x + h


class AttentionBlock(nn.Module):
    """Adds single-head self-attention over all positions to a shortcut."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        batch, height, width, channels = x.shape
        h = GroupNorm(self.dtype, name="norm")(x).astype(self.dtype)

        def project(name):
            projected = Conv(channels, 1, dtype=self.dtype, name=name)(h)
            return projected.reshape(batch, height * width, channels)

        q, k, v = project("q"), project("k"), project("v")
        wide = at_least_float32(self.dtype)
        scores = jnp.einsum("bqc,bkc->bqk", q, k, preferred_element_type=wide)
        weights = nn.softmax(scores * channels**-0.5, axis=-1).astype(self.dtype)
        h = jnp.einsum("bqk,bkc->bqc", weights, v).reshape(x.shape)
        return x + Conv(channels, 1, dtype=self.dtype, name="proj_out")(h)


class _Middle(nn.Module):
    """Applies block, attention, block at the lowest resolution."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        x = ResidualBlock(channels, self.dtype, name="block_1")(x)
        x = AttentionBlock(self.dtype, name="attn_1")(x)
        return ResidualBlock(channels, self.dtype, name="block_2")(x)


def _to_output(x, features: int, dtype):
    """Applies the last norm, swish and convolution, inside the calling module."""
    x = swish(GroupNorm(dtype, name="norm_out")(x)).astype(dtype)
    return Conv(features, dtype=dtype, name="conv_out")(x)


class Encoder(nn.Module):
    """Maps images `[B, H, W, channels]` to latents `[B, H/f, W/f, z_channels]`.

    f = 2 ** (len(ch_mult) - 1). Attention follows each block of a level whose height
    (before its downsampling) is in `attn_resolutions`.
    """

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    z_channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images):
        x = Conv(self.ch, dtype=self.dtype, name="conv_in")(images.astype(self.dtype))
        for level, mult in enumerate(self.ch_mult):
            for j in range(self.num_res_blocks):
                block = f"down_{level}_block_{j}"
                x = ResidualBlock(self.ch * mult, self.dtype, name=block)(x)
                if x.shape[1] in self.attn_resolutions:
                    x = AttentionBlock(self.dtype, name=f"down_{level}_attn_{j}")(x)
            if level < len(self.ch_mult) - 1:
                x = Conv(
                    x.shape[-1],
                    stride=2,
                    padding=((0, 1), (0, 1)),
                    dtype=self.dtype,
                    name=f"down_{level}_downsample",
                )(x)
        x = _Middle(self.dtype, name="mid")(x)
        return _to_output(x, self.z_channels, self.dtype)


class Decoder(nn.Module):
    """Maps latents `[B, H/f, W/f, z_channels]` to images `[B, H, W, out_channels]`.

    The mirror image of the encoder, with one more block per level. Levels keep the
    encoder's numbers, so the last one comes first. The output is not squashed.
    """

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    out_channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z):
        width = self.ch * self.ch_mult[-1]
        x = Conv(width, dtype=self.dtype, name="conv_in")(z.astype(self.dtype))
        x = _Middle(self.dtype, name="mid")(x)
        for level, mult in reversed(list(enumerate(self.ch_mult))):
            for j in range(self.num_res_blocks + 1):
                block = f"up_{level}_block_{j}"
                x = ResidualBlock(self.ch * mult, self.dtype, name=block)(x)
                if x.shape[1] in self.attn_resolutions:
                    x = AttentionBlock(self.dtype, name=f"up_{level}_attn_{j}")(x)
            if level > 0:
                settings = dict(dtype=self.dtype, name=f"up_{level}_upsample")
                x = Conv(x.shape[-1], enlarge=True, **settings)(x)
        return _to_output(x, self.out_channels, self.dtype)
