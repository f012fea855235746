# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Residual quantization and the codebook's moving averages (paper section 3.1).

Pure functions on arrays, and one small pytree, `Codebook`. Everything here runs in
float32 whatever the network computes in: in bfloat16 or TF32 near ties flip.

Legend: N vectors (the flattened batch and positions), C channels, K codes, D depth.

A codebook is shared by all depths, arrays `[K, C]`, or there is one for each depth,
arrays `[D, K, C]` with K the largest; codes beyond a smaller depth's size are padding,
zero and never selected. One scan over depth serves both: a shared codebook travels in
the carry, so that depth d + 1 searches what depth d has just updated; codebooks of
their own are scanned over.
"""

from __future__ import annotations

from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp

# Bounds the [N, K] table of distances that exists at one moment; a multiple of the
# matrix units' tile, and no smaller than most codebooks.
CHUNK = 8192
# The reference fills a codebook larger than the batch with noisy copies of its vectors.
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


class Quantized(NamedTuple):
    """The result of `quantize`.

    Attributes:
      codes: int32 `[..., D]`.
      sums: running sums of code vectors over depth, float32 `[D, ..., C]`.
      soft: probability of each code, softmax(-distance / temperature), float32
        `[..., D, K]`; None unless asked for.
      codebook: the updated codebook; the one given when there was no update.
    """

    codes: jax.Array
    sums: jax.Array
    soft: jax.Array | None
    codebook: Codebook


def init_codebook(key: jax.Array, shape: tuple[int, ...], sizes=None) -> Codebook:
    """Returns normally distributed code vectors and zero counts, as the authors' code.

    The first training step with restarts replaces nearly all of them by vectors of the
    batch, which is the codebook's real initialisation.
    """
    embedding = jax.random.normal(key, shape, jnp.float32)
    if sizes is not None and len(shape) == 3:
        embedding *= _valid(sizes, shape[-2])[..., None]
    return Codebook(embedding, jnp.zeros(shape[:-1], jnp.float32), embedding)


def _valid(sizes, num_codes: int) -> jax.Array:
    """Returns the mask `[D, K]` of the codes that exist at each depth."""
    return jnp.arange(num_codes) < jnp.asarray(sizes)[:, None]


def distances(vectors: jax.Array, embedding: jax.Array) -> jax.Array:
    """Returns squared distances of `[..., C]` to `[K, C]`: `[..., K]`, float32."""
    vectors, embedding = vectors.astype(jnp.float32), embedding.astype(jnp.float32)
    product = jnp.einsum("...c,kc->...k", vectors, embedding, precision="highest")
    return (
        jnp.sum(vectors**2, axis=-1, keepdims=True)
        + jnp.sum(embedding**2, axis=-1)
        - 2 * product
    )


def nearest(
    vectors,
    embedding,
    valid=None,
    chunk: int = CHUNK,
    temperature: float | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Returns the index of the nearest code (the lowest of equals), or samples one.

    Args:
      vectors: `[N, C]`.
      embedding: `[K, C]`.
      valid: mask `[K]` of the codes that may be chosen; all where None.
      chunk: codes compared at a time, which bounds memory to `N * chunk` distances.
      temperature, key: where given, samples from softmax(-distance / temperature), as
        the least of distance / temperature minus Gumbel noise.

    Returns:
      int32 `[N]`.
    """
    num_codes = embedding.shape[0]
    if valid is None:
        valid = jnp.ones(num_codes, bool)

    def cost(key, embedding, valid):
        cost = _masked(vectors, embedding, valid)
        if key is None:
            return cost
        return cost / temperature - jax.random.gumbel(key, cost.shape)

    if num_codes <= chunk:
        return jnp.argmin(cost(key, embedding, valid), axis=-1).astype(jnp.int32)

    chunks = -(-num_codes // chunk)
    padding = chunks * chunk - num_codes
    embedding = jnp.pad(embedding, ((0, padding), (0, 0))).reshape(chunks, chunk, -1)
    valid = jnp.pad(valid, (0, padding)).reshape(chunks, chunk)

    def compare(best, inputs):
        best_distance, best_code = best
        start, embedding, valid = inputs
        chunk_key = None if key is None else jax.random.fold_in(key, start)
        distance = cost(chunk_key, embedding, valid)
        code = jnp.argmin(distance, axis=-1).astype(jnp.int32)
        distance = jnp.min(distance, axis=-1)
        nearer = distance < best_distance
        return (
            jnp.where(nearer, distance, best_distance),
            jnp.where(nearer, start + code, best_code),
        ), None

    # Derived from the vectors rather than made fresh, so that they have its sharding.
    best = (jnp.full_like(vectors[:, 0], jnp.inf), jnp.zeros_like(vectors[:, 0], int))
    best = (best[0], best[1].astype(jnp.int32))
    starts = jnp.arange(chunks, dtype=jnp.int32) * chunk
    (_, codes), _ = jax.lax.scan(compare, best, (starts, embedding, valid))
    return codes


def _masked(vectors, embedding, valid):
    return jnp.where(valid, distances(vectors, embedding), jnp.inf)


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
    batch_counts, batch_sums = _batch_sums(vectors, codes, num_codes, update.sums)
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


def _batch_sums(vectors, codes, num_codes: int, kind: str):
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


def quantize(
    z: jax.Array,
    codebook: Codebook,
    *,
    depth: int | None = None,
    sizes: tuple[int, ...] | None = None,
    update: Update | None = None,
    temperature: float | None = None,
    stochastic: bool = False,
    key: jax.Array | None = None,
) -> Quantized:
    """Quantizes the residual at each depth in turn (paper eq. 1-2).

    In training (`update` given) each depth searches the codebook, updates it with its
    residuals, and takes its code vectors from the codebook before that update.

    Args:
      z: vectors `[..., C]`.
      codebook: shared `[K, C]`, or `[D, K, C]`.
      depth: number of codes for each vector; needed where the codebook is shared.
      sizes: number of codes at each depth, where codebooks of their own differ.
      update: moves the codebook; left as it is where None.
      temperature: also returns soft codes at this temperature (paper section 3.2.3).
      stochastic: draws codes from the soft codes rather than taking the nearest.
      key: random key, for restarts and stochastic codes.

    Returns:
      A `Quantized`.

    Raises:
      ValueError: on shapes or options that do not fit together.
    """
    shared = codebook.embedding.ndim == 2
    depth = _check(z, codebook, depth, sizes, temperature, stochastic, key)
    num_codes, channels = codebook.embedding.shape[-2:]
    vectors = z.reshape(-1, channels).astype(jnp.float32)
    if sizes is None:
        sizes = (num_codes,) * depth
    keys = jax.random.split(jax.random.key(0) if key is None else key, (depth, 2))
    decay = None
    if update is not None:
        decay = jnp.broadcast_to(jnp.asarray(update.decay, jnp.float32), (depth,))

    def one_depth(carry, inputs):
        residual, total, carried = carry
        scanned, valid, (draw_key, restart_key), decay = inputs
        book = carried if shared else scanned
        soft = None
        if temperature is not None:
            soft = _soft(residual, book.embedding, valid, temperature)
        draw = (temperature, draw_key) if stochastic else ()
        codes = nearest(residual, book.embedding, valid, CHUNK, *draw)
        chosen = book.embedding[codes]
        if update is not None:
            book = update_codebook(
                book, residual, codes, update._replace(decay=decay), restart_key, valid
            )
        residual, total = residual - chosen, total + chosen
        outputs = (codes, total, soft, None if shared else book)
        return (residual, total, book if shared else None), outputs

    carry = (vectors, jnp.zeros_like(vectors), codebook if shared else None)
    inputs = (
        None if shared else codebook,
        _valid(sizes, num_codes),
        (keys[:, 0], keys[:, 1]),
        decay,
    )
    (_, _, carried), (codes, sums, soft, scanned) = jax.lax.scan(
        one_depth, carry, inputs, length=depth
    )
    leading = z.shape[:-1]
    if soft is not None:
        soft = jnp.moveaxis(soft, 0, 1).reshape(*leading, depth, num_codes)
    return Quantized(
        codes=jnp.moveaxis(codes, 0, -1).reshape(*leading, depth),
        sums=sums.reshape(depth, *leading, channels),
        soft=soft,
        codebook=carried if shared else scanned,
    )


def soft_codes(z, codes, codebook: Codebook, sizes=None, temperature=1.0):
    """Returns soft codes of the residuals of given codes (paper section 3.2.3).

    What `quantize` returns as `soft`, recomputed from the codes that it chose: for
    some of the vectors at a time, where all together would not fit.

    Args:
      z: vectors `[..., C]`.
      codes: int32 `[..., D]`.
      codebook, sizes, temperature: see `quantize`.

    Returns:
      softmax(-distance / temperature), float32 `[..., D, K]`.
    """
    embedding, depth = codebook.embedding, codes.shape[-1]
    valid = _valid(sizes or (embedding.shape[-2],) * depth, embedding.shape[-2])
    residual, soft = z.astype(jnp.float32), []
    for d in range(depth):
        book = embedding if embedding.ndim == 2 else embedding[d]
        soft.append(_soft(residual, book, valid[d], temperature))
        residual = residual - book[codes[..., d]]
    return jnp.stack(soft, axis=-2)


def _soft(residual, embedding, valid, temperature):
    return jax.nn.softmax(-_masked(residual, embedding, valid) / temperature, axis=-1)


def _check(z, codebook, depth, sizes, temperature, stochastic, key) -> int:
    shape = codebook.embedding.shape
    if len(shape) not in (2, 3):
        raise ValueError(f"a codebook is [K, C] or [D, K, C], not {shape}")
    if z.shape[-1] != shape[-1]:
        raise ValueError(f"vectors of {z.shape[-1]} channels, codes of {shape[-1]}")
    own_depth = shape[0] if len(shape) == 3 else depth
    if own_depth is None:
        raise ValueError("a shared codebook needs `depth`")
    if depth is not None and depth != own_depth:
        raise ValueError(f"depth {depth} with codebooks for {own_depth} depths")
    if sizes is not None and (
        len(sizes) != own_depth or not all(0 < size <= shape[-2] for size in sizes)
    ):
        raise ValueError(
            f"sizes {sizes} for depth {own_depth} and {shape[-2]} codes at most"
        )
    if stochastic and (temperature is None or key is None):
        raise ValueError("stochastic codes need a temperature and a key")
    return own_depth


def residual_quantize(z, codebook, depth=None, sizes=None) -> tuple:
    """Returns nearest codes and their cumulative sums (paper eq. 1-2).

    Args:
      z: vectors `[..., C]`.
      codebook: a `Codebook` or its embedding, `[K, C]` (shared) or `[D, K, C]`.
      depth: number of codes for each vector; needed where the codebook is shared.
      sizes: number of codes at each depth, where they differ.

    Returns:
      codes int32 `[..., D]` and cumulative sums float32 `[D, ..., C]`.
    """
    if not isinstance(codebook, Codebook):
        embedding = jnp.asarray(codebook)
        codebook = Codebook(embedding, embedding[..., 0], embedding)
    quantized = quantize(z, codebook, depth=depth, sizes=sizes)
    return quantized.codes, quantized.sums


def embed(codes: jax.Array, embedding: jax.Array) -> jax.Array:
    """Returns the code vectors of each depth, not summed: `[..., D]` to `[..., D, C]`.

    Args:
      codes: int32 `[..., D]`; D may be smaller than the codebook's depth.
      embedding: `[K, C]` or `[D, K, C]`.
    """
    embedding = jnp.asarray(embedding)
    if embedding.ndim == 2:
        return embedding[codes]
    return embedding[jnp.arange(codes.shape[-1]), codes]


def commitment_loss(z: jax.Array, sums: jax.Array) -> jax.Array:
    """Returns the mean squared distance of z `[..., C]` to the sums `[D, ..., C]`.

    The mean over depth, as in the released code; paper eq. 7 has a sum.
    """
    return jnp.mean((_wide(z) - jax.lax.stop_gradient(sums)) ** 2)


def _wide(z: jax.Array) -> jax.Array:
    return z.astype(jnp.promote_types(z.dtype, jnp.float32))


def straight_through(z: jax.Array, quantized: jax.Array) -> jax.Array:
    """Returns the value of `quantized` with the gradient of `z`."""
    z = _wide(z)
    return z + jax.lax.stop_gradient(quantized - z)


def pack(z: jax.Array, rows: int, columns: int) -> jax.Array:
    """Packs blocks: `[..., H, W, C]` to `[..., rows, columns, (H/rows)(W/columns)C]`.

    Order inside a vector: row in the block, column in the block, channel.

    Raises:
      ValueError: where the code map does not divide the feature map.
    """
    *leading, height, width, channels = z.shape
    if height % rows or width % columns:
        raise ValueError(f"feature map {height}x{width} into codes {rows}x{columns}")
    r, c = height // rows, width // columns
    z = z.reshape(*leading, rows, r, columns, c, channels)
    return jnp.swapaxes(z, -4, -3).reshape(*leading, rows, columns, r * c * channels)


def unpack(z: jax.Array, height: int, width: int) -> jax.Array:
    """Inverts `pack`: to `[..., height, width, C]`."""
    *leading, rows, columns, packed = z.shape
    r, c = height // rows, width // columns
    z = z.reshape(*leading, rows, columns, r, c, packed // (r * c))
    return jnp.swapaxes(z, -4, -3).reshape(*leading, height, width, packed // (r * c))
