# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Turns images into codes and codes into images, batch by batch on a mesh."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rq.config import ConfigError
from rq.data import pixels
from rq.models.rqvae import RQVAE
from rq.parallel import sharding


class Codec:
    """Encodes and decodes with a trained RQ-VAE.

    Batches have one shape, that of the compiled program: the last is padded. They are
    divided over the mesh, and at most two are on the devices at any time.
    """

    def __init__(self, rqvae: RQVAE, variables, mesh):
        """Takes the RQ-VAE, its `params` and `codebook`, and the devices."""
        self._rqvae, self._variables, self._mesh = rqvae, variables, mesh

    def encode(self, images: np.ndarray, batch_size: int) -> np.ndarray:
        """Returns codes int32 `[N, H, W, D]` of images `[N, Y, X, C]`, on the host.

        Args:
          images: uint8, or floats in [-1, 1].
          batch_size: images at once, at most.
        """
        return np.concatenate(list(read_behind(self._codes(images, batch_size))))

    def _codes(self, images, batch_size):
        for number, batch in batches(self._mesh, images, batch_size):
            with sharding.context(self._mesh):
                yield number, encode(self._rqvae, self._variables, batch)

    def decode(
        self,
        codes: np.ndarray,
        batch_size: int,
        depth: int | None = None,
        dtype=np.float32,
    ) -> Iterator[np.ndarray]:
        """Yields images `[B, Y, X, C]` of codes `[N, H, W, D]`, on the host.

        Args:
          codes: int32.
          batch_size: codes at once, at most.
          depth: first depths that are decoded; None: all.
          dtype: of the images: float32 in [-1, 1], or uint8.

        Raises:
          ConfigError: where pixels are not finite.
        """
        first = 0
        for images, finite in read_behind(
            self._images(codes, batch_size, depth, dtype)
        ):
            check_pixels(finite, first)
            first += len(images)
            yield images

    def _images(self, codes, batch_size, depth, dtype):
        for number, batch in batches(self._mesh, codes, batch_size):
            with sharding.context(self._mesh):
                images, finite = decode(self._rqvae, self._variables, batch, depth)
            yield number, (as_dtype(images, dtype), finite)


@functools.partial(jax.jit, static_argnums=0)
def encode(rqvae: RQVAE, variables, images: jax.Array) -> jax.Array:
    """Returns codes int32 `[B, H, W, D]` of images, uint8 or floats in [-1, 1]."""
    codes: Any = rqvae.apply(variables, pixels.to_float(images), method="codes")
    return codes


def decode(rqvae: RQVAE, variables, codes: jax.Array, depth: int | None = None):
    """Returns images in [-1, 1] of codes, and whether each image was finite."""
    return _clip(_decode_codes(rqvae, variables, codes, depth))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _decode_codes(rqvae, variables, codes, depth):
    return rqvae.apply(variables, codes, depth, method="decode_codes")


@jax.jit
def _clip(images):
    return jnp.clip(images, -1, 1), jnp.isfinite(images).all(axis=(1, 2, 3))


_to_uint8 = jax.jit(pixels.to_uint8)


def as_dtype(images: jax.Array, dtype) -> jax.Array:
    """Returns images in [-1, 1] as they are, or as uint8."""
    return _to_uint8(images) if np.dtype(dtype) == np.uint8 else images


def whole_batch(mesh, batch_size: int, number: int) -> int:
    """Returns rows at once: at most `number`, rounded up to fill the devices."""
    parts = sharding.batch_parts(mesh)
    return -(-min(batch_size, number) // parts) * parts


def batches(mesh, rows: np.ndarray, batch_size: int) -> Iterator[tuple[int, jax.Array]]:
    """Yields batches of one shape on the devices, each with its number of true rows."""
    size = whole_batch(mesh, batch_size, len(rows))
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        batch = {"rows": np.resize(part, (size, *part.shape[1:]))}
        with sharding.context(mesh):
            yield len(part), sharding.shard_batch(batch, mesh, whole=True)["rows"]


def read_behind(batches):
    """Yields host copies of device batches, each read after the next is dispatched.

    So the devices work while the host does, and hold no more than two batches.

    Args:
      batches: iterator of (rows that are no padding, tree of arrays `[B, ...]`).
    """
    previous = None
    for batch in batches:
        found = None if previous is None else _to_host(*previous)
        previous = batch
        del batch
        if found is not None:
            yield found
    if previous is not None:
        yield _to_host(*previous)


def _to_host(number, tree):
    return jax.tree.map(lambda x: x[:number], sharding.to_host(tree))


def check_pixels(finite: np.ndarray, first: int) -> None:
    """Checks a batch that starts at sample `first`.

    Raises:
      ConfigError: where images were not finite, with the first.
    """
    if not finite.all():
        raise ConfigError(
            f"sample {first + np.argmin(finite)}: pixels that are not finite: the "
            "RQ-VAE's weights have diverged; try another --step"
        )
