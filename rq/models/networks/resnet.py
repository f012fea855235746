# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""torchvision's ResNet (He et al. 2016), a frozen classifier of samples.

Batch norms are folded into the convolutions before them (`rq.convert.resnet_weights`),
since the network is never trained here. float32 throughout, with products at the
highest precision: accelerators would round to bfloat16 or TF32.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

# torchvision's preprocessing: short side, centre crop, then (x - MEAN) / STD in [0, 1].
SIDE, CROP = 256, 224
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
WIDTHS = (64, 128, 256, 512)  # of the four groups of blocks
EXPANSION = 4  # a bottleneck's output over its width


def _conv(x, width, size, stride, name):
    window = (size, size)
    layer = nn.Conv(
        width, window, stride, padding=size // 2, name=name, precision="highest"
    )
    return layer(x)


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 in a bottleneck.

    Attributes:
      width: channels of the 3x3 convolutions.
      stride: stride of the first 3x3 convolution.
      bottleneck: whether it is a bottleneck, whose output is `EXPANSION` times as wide.
    """

    width: int
    stride: int
    bottleneck: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, width or 4 width]`."""
        width, stride = self.width, (self.stride, self.stride)
        if self.bottleneck:
            wide = EXPANSION * width
            y = nn.relu(_conv(x, width, 1, 1, "conv1"))
            y = nn.relu(_conv(y, width, 3, stride, "conv2"))
            y = _conv(y, wide, 1, 1, "conv3")
        else:
            wide = width
            y = nn.relu(_conv(x, width, 3, stride, "conv1"))
            y = _conv(y, width, 3, 1, "conv2")
        if x.shape != y.shape:
            x = _conv(x, wide, 1, stride, "downsample")
        return nn.relu(x + y)


class ResNet(nn.Module):
    """The ResNet of torchvision, with batch norms folded.

    Attributes:
      blocks: number of blocks in each group; (3, 4, 23, 3) for ResNet-101.
      bottleneck: whether blocks are bottlenecks; False for ResNet-18 and ResNet-34.
      num_classes: number of logits.
    """

    blocks: tuple[int, ...]
    bottleneck: bool
    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits `[B, num_classes]` of normalised images `[B, H, W, 3]`."""
        x = nn.relu(_conv(images, WIDTHS[0], 7, (2, 2), "conv1"))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for group, (width, number) in enumerate(zip(WIDTHS, self.blocks, strict=True)):
            for index in range(number):
                stride = 2 if group and not index else 1
                name = f"layer{group + 1}_{index}"
                x = Block(width, stride, self.bottleneck, name=name)(x)
        dense = nn.Dense(self.num_classes, name="fc", precision="highest")
        return dense(jnp.mean(x, axis=(1, 2)))


def preprocess(images: jax.Array) -> jax.Array:
    """Normalises `[B, H, W, C]` in [-1, 1] to `[B, 224, 224, 3]` as torchvision does.

    The short side is resized to 256 if needed (bilinear with antialiasing), and the
    centre cropped. Grey images are repeated to three channels.
    """
    number, *sides, _ = images.shape
    images = jnp.broadcast_to(images, (number, *sides, 3))
    short = min(sides)
    if short != SIDE:
        sides = [SIDE * side // short for side in sides]
        images = jax.image.resize(images, (number, *sides, 3), "bilinear")
    top, left = (round((side - CROP) / 2) for side in sides)
    images = images[:, top : top + CROP, left : left + CROP]
    return ((images + 1) / 2 - jnp.asarray(MEAN)) / jnp.asarray(STD)
