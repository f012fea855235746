# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Residual quantization (paper section 3.1).

Pure functions in float32, whatever the network computes in: in bfloat16 or TF32 near
ties flip. One scan over depth serves shared and separate codebooks: a shared one is in
the carry, so that depth d + 1 searches what depth d has just updated; separate ones are
scanned over.

Legend: N vectors (the flattened batch and positions), C channels, K codes, D depth.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rq.models.codebook import CHUNK, Codebook, Update, update_codebook, valid_codes


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
        return _argmin(cost(key, embedding, valid))[0]

    chunks = -(-num_codes // chunk)
    padding = chunks * chunk - num_codes
    embedding = jnp.pad(embedding, ((0, padding), (0, 0))).reshape(chunks, chunk, -1)
    valid = jnp.pad(valid, (0, padding)).reshape(chunks, chunk)

    def compare(best, inputs):
        best_distance, best_code = best
        start, embedding, valid = inputs
        chunk_key = None if key is None else jax.random.fold_in(key, start)
        distance = cost(chunk_key, embedding, valid)
        code, distance = _argmin(distance)
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


def _argmin(cost):
    """Returns the index int32 `[N]` of the least of `[N, K]`, and the least.

    Two reductions: CPUs compute one of pairs (`jnp.argmin`), and all that XLA fuses
    with it, a number at a time.
    """
    least = jnp.min(cost, axis=-1, keepdims=True)
    numbers = jnp.arange(cost.shape[-1], dtype=jnp.int32)
    is_least = (cost == least) | jnp.isnan(cost)
    code = jnp.min(jnp.where(is_least, numbers, cost.shape[-1]), axis=-1)
    return code, least[:, 0]


def _masked(vectors, embedding, valid):
    return jnp.where(valid, distances(vectors, embedding), jnp.inf)


@jax.named_scope("quantizer")
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
        valid_codes(sizes, num_codes),
        (keys[:, 0], keys[:, 1]),
        decay,
    )
    (_, _, carried), (codes, sums, soft, scanned) = jax.lax.scan(
        one_depth, carry, inputs, length=depth
    )
    leading = z.shape[:-1]
    if soft is not None:
        soft = jnp.moveaxis(soft, 0, 1).reshape(*leading, depth, num_codes)
    updated: Any = carried if shared else scanned
    return Quantized(
        codes=jnp.moveaxis(codes, 0, -1).reshape(*leading, depth),
        sums=sums.reshape(depth, *leading, channels),
        soft=soft,
        codebook=updated,
    )


@jax.named_scope("soft_targets")
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
    valid = valid_codes(sizes or (embedding.shape[-2],) * depth, embedding.shape[-2])
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
