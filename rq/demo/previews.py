# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures of code maps of which only some codes are known, or are to be seen."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rq.data import pixels
from rq.models.rqvae import RQVAE
from rq.parallel import sharding
from rq.sampling import codec
from rq.sampling.trained_models import TrainedModels

UNKNOWN = 0.8  # grey of what is not yet drawn, in [-1, 1]


class Previews:
    """Decodes each position of code maps up to a depth of its own.

    One compiled program does it, whatever the number of code maps and the depths.
    """

    def __init__(self, models: TrainedModels, size: int):
        """Takes the models, and how many images are decoded at once."""
        self._models, self.size = models, codec.whole_batch(models.mesh, size, size)

    def decode(self, codes: np.ndarray, depths: np.ndarray | int) -> np.ndarray:
        """Returns uint8 `[N, Y, X, C]`; positions of depth 0 are light grey.

        Args:
          codes: int32 `[N, H, W, D]`.
          depths: how many depths are decoded, broadcast to `[N, H, W]`.
        """
        depths = np.broadcast_to(np.int32(depths), codes.shape[:-1])
        parts = range(0, len(codes), self.size)
        return np.concatenate(
            [
                self._decode(codes[i:][: self.size], depths[i:][: self.size])
                for i in parts
            ]
        )

    def _decode(self, codes, depths):
        models, number = self._models, len(codes)
        batch = {"codes": codes, "depths": depths}
        batch = {
            name: np.resize(x, (self.size, *x.shape[1:])) for name, x in batch.items()
        }
        with sharding.context(models.mesh):
            batch = sharding.shard_batch(batch, models.mesh, whole=True)
            images = _decode(
                models.rqvae, models.rqvae_variables, batch["codes"], batch["depths"]
            )
        return sharding.to_host(images)[:number]


@functools.partial(jax.jit, static_argnums=0)
def _decode(rqvae: RQVAE, variables, codes: jax.Array, depths: jax.Array) -> jax.Array:
    vectors_BHWDE: Any = rqvae.apply(variables, codes, method="embed_codes")
    seen = jnp.arange(codes.shape[-1]) < _enlarge(depths, vectors_BHWDE)[..., None]
    latents = jnp.sum(jnp.where(seen[..., None], vectors_BHWDE, 0), axis=-2)
    images: Any = rqvae.apply(variables, latents, method="decode")
    known = _enlarge(depths, images)[..., None] > 0
    return pixels.to_uint8(jnp.where(known, images, UNKNOWN))


def _enlarge(depths, like):
    """Repeats `[B, h, w]` to the height and width of `[B, H, W, ...]`."""
    height, width = (like.shape[i] // depths.shape[i] for i in (1, 2))
    return depths.repeat(height, axis=1).repeat(width, axis=2)
