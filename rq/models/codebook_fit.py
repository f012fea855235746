# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Codebooks fitted to given vectors before training: by k-means, or to another size.

Pure functions in float32, for `jit`: with vectors sharded over M, sums over them become
all-reduces, as in training.

Legend: G batches of M vectors (images and positions), C channels, K codes, D depth.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rq.models.codebook import Codebook, sums_by_code
from rq.models.quantizer import nearest

ITERATIONS = 10  # of Lloyd's algorithm
# Vectors in a batch that a resized codebook counts for each code at least: a code
# without any is restarted after 110 steps with a decay of 0.99.
KEPT = 3.0


def fit(vectors: jax.Array, sizes: Sequence[int], shared: bool, key) -> Codebook:
    """Returns the codebook of residual k-means.

    Each depth's codes are fitted to what the depths before leave over: seeded as in
    k-means++, then moved to the means of their vectors. A codebook that all depths
    share begins with a part from each, and moves to the means of all their residuals.

    Args:
      vectors: float32 `[G, M, C]`.
      sizes: number of codes at each depth, D.
      shared: whether there is one codebook, of `sizes[0]` codes.
      key: random key of the seeds.

    Returns:
      A `Codebook` whose counts are those of a batch, at least 1. Training restarts
      codes that have fewer vectors.
    """
    depth, largest = len(sizes), max(sizes)
    parts = list(sizes)
    if shared:
        first = min(depth, largest)
        parts = [largest // first + (d < largest % first) for d in range(first)]
    residual, books, counts = vectors, [], []
    for part, one_key in zip(parts, jax.random.split(key, len(parts)), strict=True):
        book = jnp.zeros((part, vectors.shape[-1]), jnp.float32)
        book = _seed(residual, book, jnp.zeros(part, bool), one_key)
        book = jax.lax.fori_loop(
            0,
            ITERATIONS,
            lambda _, book, r=residual: _moved(book, *_sums(r, book)),
            book,
        )
        count, residual = _quantized(residual, book)
        books.append(book)
        counts.append(count)
    if not shared:
        return _stacked(books, counts, len(vectors), 1.0)
    book = jnp.concatenate(books)
    book = jax.lax.fori_loop(
        0,
        ITERATIONS,
        lambda _, book: _moved(book, *_pooled_sums(vectors, book, depth)),
        book,
    )
    counts, _ = _pooled_sums(vectors, book, depth)
    return _of_counts(book, counts, len(vectors) * depth, 1.0)


def resize(
    vectors: jax.Array,
    sizes: Sequence[int],
    shared: bool,
    key,
    given: Codebook,
    given_sizes: Sequence[int],
) -> Codebook:
    """Returns a codebook of other sizes, made of a given one.

    Of more codes than are wanted at a depth, those that are nearest to the most vectors
    stay, in their order. Where more are wanted, residuals that are far from all codes
    are added, drawn as in k-means++. If only the given codebook is shared, each depth
    gets its own choice. Counts are at least `KEPT`.

    Args:
      vectors, sizes, shared, key: see `fit`.
      given: `[K, C]` or `[D, K, C]`.
      given_sizes: its number of codes at each depth of the new one, D.
    """
    depth = len(sizes)
    keys = jax.random.split(key, depth)
    if shared:
        residual, counts, residuals = vectors, 0, []
        book = given.embedding
        for _ in range(depth):
            residuals.append(residual)
            count, residual = _quantized(residual, book)
            counts = counts + count
        pooled = jnp.concatenate(residuals, axis=1)
        book = _chosen(book, counts, pooled, sizes[0], keys[0])
        counts, _ = _pooled_sums(vectors, book, depth)
        return _of_counts(book, counts, len(vectors) * depth, KEPT)
    residual, books, new_counts = vectors, [], []
    for d, (size, one_key) in enumerate(zip(sizes, keys, strict=True)):
        old = given.embedding if given.embedding.ndim == 2 else given.embedding[d]
        old = old[: given_sizes[d]]
        count, _ = _quantized(residual, old)
        book = _chosen(old, count, residual, size, one_key)
        count, residual = _quantized(residual, book)
        books.append(book)
        new_counts.append(count)
    return _stacked(books, new_counts, len(vectors), KEPT)


def _chosen(book, counts, vectors, size: int, key):
    """Returns `size` codes: the most used ones of `[K, C]`, and more from vectors."""
    number = len(book)
    if size <= number:
        most_used = jnp.argsort(-counts, stable=True)[:size]
        return book[jnp.sort(most_used)]
    book = jnp.pad(book, ((0, size - number), (0, 0)))
    return _seed(vectors, book, jnp.arange(size) < number, key)


def _seed(vectors, book, exists, key):
    """Fills a codebook with vectors, drawn by their distance to the codes so far.

    As in k-means++ (Arthur and Vassilvitskii 2007).

    Args:
      vectors: `[G, M, C]`.
      book: `[K, C]`.
      exists: bool `[K]`; these codes stay, the others are drawn.
      key: random key.
    """
    found = jnp.full(vectors.shape[:2], jnp.inf)  # squared distance to the nearest code

    def nearest_existing(vectors):
        codes = nearest(vectors, book, exists)
        return jnp.sum((vectors - book[codes]) ** 2, axis=-1)

    far = jax.lax.map(nearest_existing, vectors)
    found = jnp.where(jnp.any(exists), far, found)

    def one_code(carry, inputs):
        book, found = carry
        place, old, draw_key = inputs
        weights = jnp.where(jnp.isinf(found), 1.0, found).reshape(-1)
        drawn = jax.random.categorical(draw_key, jnp.log(weights))
        code = vectors.reshape(-1, vectors.shape[-1])[drawn]
        code = jnp.where(old, book[place], code)
        distance = jnp.sum((vectors - code) ** 2, axis=-1)
        found = jnp.where(old, found, jnp.minimum(found, distance))
        return (book.at[place].set(code), found), None

    number = len(book)
    inputs = (jnp.arange(number), exists, jax.random.split(key, number))
    (book, _), _ = jax.lax.scan(one_code, (book, found), inputs)
    return book


def _sums(vectors, book):
    """Returns each code's number of vectors `[K]` and their sum `[K, C]`."""

    def one_batch(total, vectors):
        codes = nearest(vectors, book)
        found = sums_by_code(vectors, codes, len(book), "scatter")
        return jax.tree.map(jnp.add, total, found), None

    zeros = (jnp.zeros(len(book)), jnp.zeros_like(book))
    return jax.lax.scan(one_batch, zeros, vectors)[0]


def _pooled_sums(vectors, book, depth: int):
    """Returns `_sums` of the residuals at all depths, with one codebook."""

    def one_depth(carry, _):
        residual, total = carry
        total = jax.tree.map(jnp.add, total, _sums(residual, book))
        return (_quantized(residual, book)[1], total), None

    zeros = (jnp.zeros(len(book)), jnp.zeros_like(book))
    (_, total), _ = jax.lax.scan(one_depth, (vectors, zeros), length=depth)
    return total


def _quantized(vectors, book):
    """Returns each code's number of vectors `[K]`, and what it leaves over of them."""

    def one_batch(vectors):
        codes = nearest(vectors, book)
        counts = jnp.zeros(len(book)).at[codes].add(1.0)
        return counts, vectors - book[codes]

    counts, residual = jax.lax.map(one_batch, vectors)
    return jnp.sum(counts, axis=0), residual


def _moved(book, counts, sums):
    """Returns the means of the codes' vectors; codes without any stay."""
    means = sums / jnp.maximum(counts, 1)[:, None]
    return jnp.where(counts[:, None] > 0, means, book)


def _of_counts(book, counts, batches: int, least: float) -> Codebook:
    counts = jnp.maximum(counts / batches, least)
    return Codebook(book, counts, book * counts[:, None])


def _stacked(books, counts, batches: int, least: float) -> Codebook:
    """Returns the codebook `[D, K, C]` of codebooks that may differ in size."""
    sizes = [len(book) for book in books]
    found = [
        _of_counts(*both, batches, least) for both in zip(books, counts, strict=True)
    ]

    def pad(x):
        return jnp.pad(x, [(0, max(sizes) - len(x))] + [(0, 0)] * (x.ndim - 1))

    return jax.tree.map(lambda *parts: jnp.stack([pad(x) for x in parts]), *found)
