# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The Inception-v3 of 2015-12-05, whose features define FID.

It is the network of TF-Slim's graph (Szegedy et al. 2016), as in pytorch-fid,
clean-fid, ADM's evaluator and torch-fidelity. Unlike torchvision's, its average pooling
excludes padding, its last block has max pooling, and there are 1,008 classes. Batch
norms are folded into the convolutions (`rq.convert.inception_weights`). float32
throughout, with products at the highest precision: accelerators would round to bfloat16
or TF32.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

SIDE = 299
NUM_CLASSES = 1008
WIDTH = 2048  # of the pooled features
SPATIAL_CHANNELS = 7  # used by sFID, as in ADM's evaluator


class Features(NamedTuple):
    """The float32 outputs that metrics are computed from.

    Attributes:
      pool: `[B, 2048]`, for FID, KID, precision and recall.
      spatial: `[B, 2023]`, 17 x 17 times `SPATIAL_CHANNELS`, for sFID.
      logits: `[B, 1008]`, for the Inception score.
    """

    pool: jax.Array
    spatial: jax.Array
    logits: jax.Array


def _average(x):
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _maximum(x, stride=2, padding="VALID"):
    return nn.max_pool(x, (3, 3), (stride, stride), padding)


def _conv(width, size, stride, padding, name):
    return nn.Conv(
        width, size, (stride, stride), padding, name=name, precision="highest"
    )


class _Block(nn.Module):
    """Base class of blocks with parallel branches of convolutions.

    A layer is (name, width, size, stride); with stride 2 it has no padding.
    """

    def conv(self, x, name, width, size=(1, 1), stride=1):
        padding = "SAME" if stride == 1 else "VALID"
        return nn.relu(_conv(width, size, stride, padding, name)(x))

    def branch(self, x, *layers):
        for layer in layers:
            x = self.conv(x, *layer)
        return x


class _A(_Block):
    pooled: int

    @nn.compact
    def __call__(self, x):
        branches = [
            self.branch(x, ("branch1x1", 64)),
            self.branch(x, ("branch5x5_1", 48), ("branch5x5_2", 64, (5, 5))),
            self.branch(
                x,
                ("branch3x3dbl_1", 64),
                ("branch3x3dbl_2", 96, (3, 3)),
                ("branch3x3dbl_3", 96, (3, 3)),
            ),
            self.branch(_average(x), ("branch_pool", self.pooled)),
        ]
        return jnp.concatenate(branches, axis=-1)


class _B(_Block):
    @nn.compact
    def __call__(self, x):
        branches = [
            self.branch(x, ("branch3x3", 384, (3, 3), 2)),
            self.branch(
                x,
                ("branch3x3dbl_1", 64),
                ("branch3x3dbl_2", 96, (3, 3)),
                ("branch3x3dbl_3", 96, (3, 3), 2),
            ),
            _maximum(x),
        ]
        return jnp.concatenate(branches, axis=-1)


class _C(_Block):
    """Also returns its first branch, which sFID uses."""

    inner: int

    @nn.compact
    def __call__(self, x):
        inner, row, column = self.inner, (1, 7), (7, 1)
        first = self.branch(x, ("branch1x1", 192))
        branches = [
            first,
            self.branch(
                x,
                ("branch7x7_1", inner),
                ("branch7x7_2", inner, row),
                ("branch7x7_3", 192, column),
            ),
            self.branch(
                x,
                ("branch7x7dbl_1", inner),
                ("branch7x7dbl_2", inner, column),
                ("branch7x7dbl_3", inner, row),
                ("branch7x7dbl_4", inner, column),
                ("branch7x7dbl_5", 192, row),
            ),
            self.branch(_average(x), ("branch_pool", 192)),
        ]
        return jnp.concatenate(branches, axis=-1), first


class _D(_Block):
    @nn.compact
    def __call__(self, x):
        branches = [
            self.branch(x, ("branch3x3_1", 192), ("branch3x3_2", 320, (3, 3), 2)),
            self.branch(
                x,
                ("branch7x7x3_1", 192),
                ("branch7x7x3_2", 192, (1, 7)),
                ("branch7x7x3_3", 192, (7, 1)),
                ("branch7x7x3_4", 192, (3, 3), 2),
            ),
            _maximum(x),
        ]
        return jnp.concatenate(branches, axis=-1)


class _E(_Block):
    maximum: bool

    @nn.compact
    def __call__(self, x):
        row, column = (1, 3), (3, 1)
        three = self.branch(x, ("branch3x3_1", 384))
        double = self.branch(
            x, ("branch3x3dbl_1", 448), ("branch3x3dbl_2", 384, (3, 3))
        )
        pooled = _maximum(x, 1, "SAME") if self.maximum else _average(x)
        branches = [
            self.branch(x, ("branch1x1", 320)),
            self.conv(three, "branch3x3_2a", 384, row),
            self.conv(three, "branch3x3_2b", 384, column),
            self.conv(double, "branch3x3dbl_3a", 384, row),
            self.conv(double, "branch3x3dbl_3b", 384, column),
            self.branch(pooled, ("branch_pool", 192)),
        ]
        return jnp.concatenate(branches, axis=-1)


class Inception(_Block):
    """The Inception-v3 network, with the layer names of pytorch-fid's weights.

    Attributes:
      biased: whether the bias is added to the logits: True for the Inception score of
        the paper's authors, False for TensorFlow's graph, torch-fidelity and ADM.
    """

    biased: bool = False

    @nn.compact
    def __call__(self, images: jax.Array) -> Features:
        """Returns the features of images `[B, 299, 299, 3]` from `preprocess`."""

        def valid(x, name, width, stride=1):
            return nn.relu(_conv(width, (3, 3), stride, "VALID", name)(x))

        x = valid(images, "Conv2d_1a_3x3", 32, 2)
        x = valid(x, "Conv2d_2a_3x3", 32)
        x = _maximum(self.conv(x, "Conv2d_2b_3x3", 64, (3, 3)))
        x = self.conv(x, "Conv2d_3b_1x1", 80)
        x = _maximum(valid(x, "Conv2d_4a_3x3", 192))
        for letter, pooled in zip("bcd", (32, 64, 64), strict=True):
            x = _A(pooled, name=f"Mixed_5{letter}")(x)
        x = _B(name="Mixed_6a")(x)
        for letter, inner in zip("bcde", (128, 160, 160, 192), strict=True):
            x, first = _C(inner, name=f"Mixed_6{letter}")(x)
            if letter == "d":  # `mixed_6/conv` of the graph
                spatial = first[..., :SPATIAL_CHANNELS]
        x = _D(name="Mixed_7a")(x)
        x = _E(False, name="Mixed_7b")(x)
        x = _E(True, name="Mixed_7c")(x)
        pool = jnp.mean(x, axis=(1, 2))
        dense = nn.Dense(NUM_CLASSES, use_bias=False, name="fc", precision="highest")
        bias = self.param("fc_bias", nn.initializers.zeros, (NUM_CLASSES,))
        logits = dense(pool) + (bias if self.biased else 0)
        return Features(pool, spatial.reshape(len(images), -1), logits)


# Resizing to 299 x 299 without antialiasing: output pixel i of n interpolates an input
# of `size` pixels at (i + shift) size / n - shift.
#   'tf1'     TensorFlow 1's `resize_bilinear`, used by the graph, ADM's evaluator and
#             torch-fidelity. It lacks the half-pixel shift, so images move to the lower
#             right, also in published statistics.
#   'pytorch' PyTorch's `interpolate`, used by pytorch-fid and the paper's authors.
_SHIFTS = {"tf1": 0.0, "pytorch": 0.5}


def preprocess(images: jax.Array, resize: str = "tf1") -> jax.Array:
    """Resizes and scales images to `[B, 299, 299, 3]`, about in [-1, 1].

    Args:
      images: uint8 `[B, H, W, 3]` of any size.
      resize: 'tf1' or 'pytorch', see `_SHIFTS`.
    """
    resized = resize_bilinear(images.astype(jnp.float32), SIDE, _SHIFTS[resize])
    if resize == "tf1":
        return (resized - 128.0) / 128.0
    return resized / 127.5 - 1.0


def resize_bilinear(images: jax.Array, side: int, shift: float) -> jax.Array:
    """Resizes `[B, H, W, C]` to `[B, side, side, C]`; `shift` is that of `_SHIFTS`."""
    for axis in (1, 2):
        size = images.shape[axis]
        places = jnp.arange(side, dtype=jnp.float32) + shift
        where = jnp.clip(places * jnp.float32(size / side) - shift, 0, size - 1)
        low = jnp.floor(where).astype(jnp.int32)
        high = jnp.minimum(low + 1, size - 1)
        shape = [1] * images.ndim
        shape[axis] = side
        weight = (where - low).reshape(shape)
        below, above = (jnp.take(images, i, axis=axis) for i in (low, high))
        images = below + (above - below) * weight
    return images
