# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Variants of the quantizer, around the one scan over depth.

The scan itself, `rq.models.quantizer.quantize`, does not know them: they prepare its
vectors, replace its codebook, or use its sums in another way. All in float32. Plain VQ
is depth 1, and a codebook for each depth is an option of the scan.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rq.models import quantizer

TINY = 1e-6  # vectors of a smaller norm have no direction to rotate


def unit(vectors: jax.Array) -> jax.Array:
    """Returns vectors `[..., C]` of norm 1, for codes compared by angle."""
    square = jnp.sum(vectors**2, axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(square, TINY**2))


def fsq_grids(levels: tuple[int, ...], depth: int) -> np.ndarray:
    """Returns fixed codebooks of residual FSQ (Mentzer et al. 2023).

    Of depth 1 it is the grid of all combinations of `levels[c]` values from -1 to 1 in
    channel c; what rounding to it leaves over is at most 1 / (levels[c] - 1), which is
    what the next depth's grid spans. Its nearest code is thus rounding by channel, and
    after D depths channel c is within (levels[c] - 1)**-D of a vector in [-1, 1].

    Args:
      levels: of each channel, 2 or more.
      depth: D.

    Returns:
      float32 `[D, prod(levels), len(levels)]`.
    """
    axes = [np.linspace(-1, 1, number) for number in levels]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(levels))
    shrink = 1 / (np.asarray(levels, np.float64) - 1)
    return np.stack([grid * shrink**d for d in range(depth)]).astype(np.float32)


def rotate(z: jax.Array, quantized: jax.Array) -> jax.Array:
    """Returns `quantized` with the rotation trick's gradient (Fifty et al. 2024).

    The gradient runs through the rotation and scaling that take z to its quantized
    vector, both held constant: it keeps its angle to the vector. Where one of the two
    has no direction it passes unchanged.

    Args:
      z, quantized: `[..., C]`.
    """
    hold = jax.lax.stop_gradient
    length = jnp.linalg.norm(hold(z), axis=-1, keepdims=True)
    wanted = jnp.linalg.norm(hold(quantized), axis=-1, keepdims=True)
    start, end = unit(hold(z)), unit(hold(quantized))
    middle = unit(start + end)

    def along(direction):
        return jnp.sum(direction * z, axis=-1, keepdims=True)

    # Two reflections, at the middle and at the end, make the rotation.
    rotated = z - 2 * middle * along(middle) + 2 * end * along(start)
    rotated *= wanted / jnp.maximum(length, TINY)
    directed = (length > TINY) & (wanted > TINY)
    passed = jnp.where(directed, rotated, z)
    # The second term is zero but for its gradient.
    return hold(quantized) + (passed - hold(passed))


def cut_depth(key: jax.Array, sums: jax.Array, fraction: float) -> jax.Array:
    """Returns the last of the sums `[D, B, ...]` or, for some images, an earlier one.

    Depth dropout: with probability `fraction`, each image on its own, the codes are cut
    to a depth drawn from 1 .. D.
    """
    depth, images = sums.shape[:2]
    cut_key, depth_key = jax.random.split(key)
    cut = jax.random.bernoulli(cut_key, fraction, (images,))
    drawn = jax.random.randint(depth_key, (images,), 0, depth)
    return sums[jnp.where(cut, drawn, depth - 1), jnp.arange(images)]


def assignment_entropy(
    z: jax.Array, sums: jax.Array, embedding: jax.Array, temperature: float, sizes=None
) -> jax.Array:
    """Returns the mean assignment entropy minus the entropy of the mean assignment.

    Low where every vector is sure of its code and all codes are used alike (as in Yu et
    al. 2024); the mean over depth. Assignments are the soft codes of each depth, whose
    gradient runs to z alone.

    Args:
      z: vectors `[..., C]`.
      sums: their running sums `[D, ..., C]`.
      embedding: `[K, C]` or `[D, K, C]`.
      temperature: of the softmax of squared distances.
      sizes: number of codes at each depth, where they differ.

    Returns:
      a scalar in nats.
    """
    hold = jax.lax.stop_gradient
    depth, channels = sums.shape[0], z.shape[-1]
    z, sums = z.reshape(-1, channels), hold(sums.reshape(depth, -1, channels))
    before = jnp.concatenate([jnp.zeros_like(sums[:1]), sums[:-1]])
    embedding = jnp.broadcast_to(hold(embedding), (depth, *embedding.shape[-2:]))
    if sizes is None:
        sizes = (embedding.shape[1],) * depth

    @jax.checkpoint  # one table [N, K] at a time in the backward pass too
    def one_depth(_, inputs):
        before, embedding, size = inputs
        logits = -quantizer.distances(z - before, embedding) / temperature
        exists = jnp.arange(embedding.shape[0]) < size
        probs = jax.nn.softmax(jnp.where(exists, logits, -jnp.inf), axis=-1)
        each = jnp.mean(_entropy(probs))
        return None, each - _entropy(jnp.mean(probs, axis=0))

    _, by_depth = jax.lax.scan(one_depth, None, (before, embedding, jnp.array(sizes)))
    return jnp.mean(by_depth)


def _entropy(probs):
    """Returns -sum(p log p) over the last axis, with gradient 0 where p = 0."""
    positive = probs > 0
    return -jnp.sum(
        jnp.where(positive, probs, 0) * jnp.log(jnp.where(positive, probs, 1)), axis=-1
    )
