# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""ResNet (He et al. 2016) as torchvision has it: a frozen judge of samples.

Batch norms are folded into the convolutions in front of them
(`rq.convert.resnet_weights`), since the network never trains here. float32 throughout,
with products at the highest precision: accelerators would round them to bfloat16 or
TF32 otherwise.
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
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1, beside a shortcut.

    Attributes:
      width: of the 3x3 convolutions.
      stride: of the last 3x3 convolution of a bottleneck, or the first otherwise.
      bottleneck: whether there are three, the last `EXPANSION` times as wide.
    """

    width: int
    stride: int
    bottleneck: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C]` to `[B, H / stride, W / stride, width or 4 width]`."""
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
    """torchvision's ResNets with batch norms folded.

    Attributes:
      blocks: of each group; (3, 4, 23, 3) is ResNet-101.
      bottleneck: of its blocks; ResNet-18 and -34 have none.
      num_classes: logits.
    """

    blocks: tuple[int, ...]
    bottleneck: bool
    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Images `[B, R, R, 3]`, normalised, to logits `[B, num_classes]`."""
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
    """Images `[B, R, R, C]` in [-1, 1] as torchvision's weights want them: 224 x 224.

    Of another size than 256 they are resized (bilinear with antialiasing); a grey one
    becomes three equal channels.
    """
    number, side, _, _ = images.shape
    images = jnp.broadcast_to(images, (number, side, side, 3))
    if side != SIDE:
        images = jax.image.resize(images, (number, SIDE, SIDE, 3), "bilinear")
    low = (SIDE - CROP) // 2
    images = images[:, low : low + CROP, low : low + CROP]
    return ((images + 1) / 2 - jnp.asarray(MEAN)) / jnp.asarray(STD)
