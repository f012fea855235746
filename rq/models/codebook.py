# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The codebook and its update by moving averages (paper section 3.1), in float32.

Legend: N vectors (the flattened batch and positions), C channels, K codes, D depth.

A codebook is shared by all depths, arrays `[K, C]`, or there is one for each depth,
arrays `[D, K, C]` with K the largest; codes beyond a smaller depth's size are padding,
zero and never selected.
"""

from __future__ import annotations

from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp

# Bounds the [N, K] table of distances that exists at one moment; a multiple of the
# matrix units' tile, and no smaller than most codebooks.
CHUNK = 8192
# The authors fill a codebook larger than the batch with noisy copies of its vectors.
TILE_NOISE = 0.01


@flax.struct.dataclass
class Codebook:
    """Holds code vectors and the moving averages they are computed from, float32.

    Attributes:
      embedding: code vectors `[K, C]`, or `[D, K, C]` where every depth has its own.
      counts: moving number of vectors assigned to each code, `[K]` or `[D, K]`.
      sums: moving sum of these vectors, same shape as `embedding`.
    """

    embedding: jax.Array
    counts: jax.Array
    sums: jax.Array


class Update(NamedTuple):
    """Settings of the codebook's update by moving averages (paper section 3.1).

    Attributes:
      decay: of the moving averages; a scalar, or `[D]`.
      epsilon: Laplace smoothing of the counts.
      restart: whether codes with a moving count below 1 restart from batch vectors.
      one_length: whether all codes keep one length, so that the nearest one is the
        nearest by angle.
      sums: how counts and sums of a batch are taken: 'scatter' adds each vector to its
        code, in an order that a GPU does not fix, so that runs differ in the last bits;
        'one_hot' multiplies by the matrix of assignments, the same each time, for
        2 N K C FLOPs.
    """

    decay: float | jax.Array = 0.99
    epsilon: float = 1e-5
    restart: bool = True
    one_length: bool = False
    sums: str = "scatter"


def init_codebook(key: jax.Array, shape: tuple[int, ...], sizes=None) -> Codebook:
    """Returns normally distributed code vectors and zero counts, as the authors' code.

    The first training step with restarts replaces nearly all of them by vectors of the
    batch, which is the codebook's real initialisation.
    """
    embedding = jax.random.normal(key, shape, jnp.float32)
    if sizes is not None and len(shape) == 3:
        embedding *= valid_codes(sizes, shape[-2])[..., None]
    return Codebook(embedding, jnp.zeros(shape[:-1], jnp.float32), embedding)


def valid_codes(sizes, num_codes: int) -> jax.Array:
    """Returns the mask `[D, K]` of the codes that exist at each depth."""
    return jnp.arange(num_codes) < jnp.asarray(sizes)[:, None]


def update_codebook(
    codebook: Codebook,
    vectors: jax.Array,
    codes: jax.Array,
    update: Update,
    key: jax.Array | None = None,
    valid: jax.Array | None = None,
) -> Codebook:
    """Moves one depth's codebook towards the vectors assigned to it.

    Sums run over all N vectors: under `jit` with a sharded batch they become
    all-reduces by themselves, and restarts draw from the global batch.

    Args:
      codebook: of one depth, embedding `[K, C]`.
      vectors: `[N, C]`, what was quantized at this depth.
      codes: int32 `[N]`.
      update: with a scalar decay.
      key: random key, needed where `update.restart`.
      valid: mask `[K]` of the codes that exist; all where None.

    Returns:
      The new codebook.

    Raises:
      ValueError: where restarts are asked for without a key.
    """
    num_codes = codebook.embedding.shape[0]
    if valid is None:
        valid = jnp.ones(num_codes, bool)
    vectors = vectors.astype(jnp.float32)
    batch_counts, batch_sums = sums_by_code(vectors, codes, num_codes, update.sums)
    counts = update.decay * codebook.counts + (1 - update.decay) * batch_counts
    sums = update.decay * codebook.sums + (1 - update.decay) * batch_sums

    if update.restart:
        if key is None:
            raise ValueError("restarting unused codes needs a random key")
        dead = valid & (counts < 1)
        fresh = _restart_vectors(key, vectors, num_codes, jnp.sum(valid))
        sums = jnp.where(dead[:, None], fresh, sums)
        counts = jnp.where(dead, 1.0, counts)

    total = jnp.sum(counts)
    if update.one_length:
        lengths = jnp.linalg.norm(sums, axis=-1, keepdims=True)
        # How far vectors reach along their codes' directions, on average.
        gain = jnp.sum(lengths) / total
        embedding = sums * gain / jnp.maximum(lengths, update.epsilon)
    else:
        smoothed = total * (counts + update.epsilon)
        smoothed /= total + jnp.sum(valid) * update.epsilon
        embedding = sums / smoothed[:, None]
    embedding = jnp.where(valid[:, None], embedding, 0)
    return Codebook(embedding, counts, sums)


def sums_by_code(vectors, codes, num_codes: int, kind: str):
    """Returns each code's number of vectors `[K]` and their sum `[K, C]`."""
    if kind == "scatter":
        counts = jnp.zeros(num_codes, jnp.float32).at[codes].add(1.0)
        zeros = jnp.zeros((num_codes, vectors.shape[1]), jnp.float32)
        return counts, zeros.at[codes].add(vectors)

    def some(start):  # a chunk of codes at a time: the matrix is [N, chunk]
        numbers = start + jnp.arange(min(num_codes, CHUNK))
        assigned = (codes[:, None] == numbers).astype(jnp.float32)
        product = jnp.einsum("nk,nc->kc", assigned, vectors, precision="highest")
        return jnp.sum(assigned, axis=0), product

    starts = jnp.arange(0, num_codes, CHUNK)
    counts, sums = jax.lax.map(some, starts)
    return counts.reshape(-1)[:num_codes], sums.reshape(-1, sums.shape[-1])[:num_codes]


def _restart_vectors(key, vectors, num_codes, size):
    """Returns `num_codes` vectors of the batch in random order, distinct if possible.

    Where a codebook of `size` codes is larger than the batch, all get a little noise.
    """
    num_vectors, channels = vectors.shape
    order_key, noise_key = jax.random.split(key)
    tiles = -(-num_codes // num_vectors)
    order = jax.vmap(lambda k: jax.random.permutation(k, num_vectors))(
        jax.random.split(order_key, tiles)
    ).reshape(-1)[:num_codes]
    fresh = vectors[order]
    if tiles > 1:
        noise = jax.random.uniform(noise_key, fresh.shape, maxval=TILE_NOISE)
        fresh += jnp.where(size > num_vectors, noise / channels**0.5, 0)
    return fresh
