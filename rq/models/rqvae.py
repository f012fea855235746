# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""RQ-VAE (paper section 3.1): encoder, residual quantizer and decoder as one module."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rq.config.image_shape import Resolution, height_and_width
from rq.models import quantizer, variants
from rq.models.autoencoder import Conv, Decoder, Encoder, at_least_float32
from rq.models.codebook import Update, init_codebook


class RQVAE(nn.Module):
    """Maps images in [-1, 1] to h x w x D codes and back.

    The codebook is no parameter: its collection `codebook` holds the code vectors and
    their moving averages, always float32. A training step asks for it with
    `mutable=["codebook"]` and `rngs={"codebook": key}`.

    Attributes:
      resolution: side of square images, or (height, width).
      image_channels: 3 for colour, 1 for grey.
      ch, ch_mult, num_res_blocks, attn_resolutions, z_channels: of the autoencoder.
      embed_dim: channels of the feature map that is quantized.
      code_shape: (h, w, D). Where h x w is smaller than the feature map, its blocks
        are packed into longer vectors.
      num_codes: one codebook size, or one for each depth.
      shared_codebook: one codebook for all depths (the paper's setting).
      decay: of the codebook's moving averages, one or one for each depth.
      restart_codes: whether unused codes restart from vectors of the batch.
      codebook_sums: 'scatter' or 'one_hot', see `Update`.
      cosine: codes of one length at each depth, compared by angle.
      fsq_levels: a fixed grid in place of a learned codebook; (0,) is off.
      gradient: past the quantizer, 'straight_through' or 'rotation'.
      depth_dropout: fraction of training images that are cut to a random depth.
      dtype: of the convolutions.
    """

    resolution: Resolution
    image_channels: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    z_channels: int
    embed_dim: int
    code_shape: tuple[int, int, int]
    num_codes: tuple[int, ...]
    shared_codebook: bool = True
    decay: tuple[float, ...] = (0.99,)
    restart_codes: bool = True
    codebook_sums: str = "scatter"
    cosine: bool = False
    fsq_levels: tuple[int, ...] = (0,)
    gradient: str = "straight_through"
    depth_dropout: float = 0.0
    dtype: Any = "float32"

    @property
    def depth(self) -> int:
        """D, codes at each position."""
        return self.code_shape[2]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images."""
        return *height_and_width(self.resolution), self.image_channels

    @property
    def latent_shape(self) -> tuple[int, int]:
        """(height, width) of the encoder's output."""
        factor = 2 ** (len(self.ch_mult) - 1)
        height, width, _ = self.image_shape
        return height // factor, width // factor

    @property
    def code_dim(self) -> int:
        """Length C of a code vector, packing included."""
        positions = math.prod(self.code_shape[:2])
        return self.embed_dim * math.prod(self.latent_shape) // positions

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of codes at each depth."""
        return self.num_codes * (self.depth // len(self.num_codes))

    def setup(self):
        autoencoder = dict(
            ch=self.ch,
            ch_mult=self.ch_mult,
            num_res_blocks=self.num_res_blocks,
            attn_resolutions=self.attn_resolutions,
            dtype=jnp.dtype(self.dtype),
        )
        self.encoder = Encoder(z_channels=self.z_channels, **autoencoder)
        self.decoder = Decoder(out_channels=self.image_channels, **autoencoder)
        self.quant_conv = Conv(self.embed_dim, 1, dtype=jnp.dtype(self.dtype))
        self.post_quant_conv = Conv(self.z_channels, 1, dtype=jnp.dtype(self.dtype))
        shape = (max(self.num_codes), self.code_dim)
        if not self.shared_codebook:
            shape = (self.depth, *shape)
        self._codebook = self.variable("codebook", "state", self._init_codebook, shape)

    @property
    def _own_sizes(self) -> tuple[int, ...] | None:
        return None if self.shared_codebook else self.sizes

    @property
    def _is_grid(self) -> bool:
        return self.fsq_levels != (0,)

    def _init_codebook(self, shape):
        key = self.make_rng("params")
        codebook = init_codebook(key, shape, self._own_sizes)
        if self._is_grid:
            grids = variants.fsq_grids(self.fsq_levels, self.depth)
            embedding = jnp.asarray(grids).reshape(shape)
            return dataclasses.replace(codebook, embedding=embedding)
        if self.cosine:
            embedding = variants.unit(codebook.embedding)
            return dataclasses.replace(codebook, embedding=embedding)
        return codebook

    def __call__(self, images, train: bool = False):
        """Returns reconstructions, codes and the commitment loss of images."""
        quantized, codes, commitment = self.quantize(self.encode(images), train)
        return self.decode(quantized), codes, commitment

    def encode(self, images: jax.Array) -> jax.Array:
        """Returns latents float32 `[B, H, W, embed_dim]` of images in [-1, 1].

        In the form that the quantizer takes: vectors of norm 1 where codes are compared
        by angle, within [-1, 1] for a fixed grid.
        """
        z = self._wide(self.quant_conv(self.encoder(images)))
        if self._is_grid:
            return jnp.tanh(z)
        return self.unpack(variants.unit(self.pack(z))) if self.cosine else z

    def quantize(self, z: jax.Array, train: bool = False):
        """Returns quantized latents, codes and the commitment loss.

        Args:
          z: `[B, H, W, embed_dim]`, as `encode` returns them.
          train: updates the codebook, depth by depth (paper section 3.1).

        Returns:
          quantized, shape of z, with gradients past the quantizer; codes int32
          `[B, h, w, D]`; the commitment loss, a scalar.
        """
        packed = self.pack(z)
        update, key = None, None
        if train and not self._is_grid:
            decay = jnp.asarray(self.decay, jnp.float32)
            update = Update(
                decay,
                restart=self.restart_codes,
                one_length=self.cosine,
                sums=self.codebook_sums,
            )
            key = self.make_rng("codebook") if self.restart_codes else None
        quantized = quantizer.quantize(
            jax.lax.stop_gradient(packed),
            self._codebook.value,
            depth=self.depth,
            sizes=self._own_sizes,
            update=update,
            key=key,
        )
        if train:
            self._codebook.value = quantized.codebook
        commitment = quantizer.commitment_loss(packed, quantized.sums)
        chosen = quantized.sums[-1]
        if train and self.depth_dropout:
            drop_key = self.make_rng("codebook")
            chosen = variants.cut_depth(drop_key, quantized.sums, self.depth_dropout)
        past = {
            "straight_through": quantizer.straight_through,
            "rotation": variants.rotate,
        }[self.gradient]
        return self.unpack(past(packed, chosen)), quantized.codes, commitment

    def assignment_entropy(self, z: jax.Array, temperature: float) -> jax.Array:
        """Returns the entropy loss of latents, see `variants.assignment_entropy`.

        Args:
          z: `[B, H, W, embed_dim]`, as `encode` returns them.
          temperature: of the soft assignments.
        """
        packed, codebook = self.pack(z), self._codebook.value
        quantized = quantizer.quantize(
            jax.lax.stop_gradient(packed),
            codebook,
            depth=self.depth,
            sizes=self._own_sizes,
        )
        return variants.assignment_entropy(
            packed, quantized.sums, codebook.embedding, temperature, self._own_sizes
        )

    def soft_codes(self, z, temperature: float, key=None):
        """Returns soft codes and the codes whose residuals they are of (section 3.2.3).

        Args:
          z: `[B, H, W, embed_dim]`.
          temperature: tau.
          key: draws stochastic codes; nearest codes where None.

        Returns:
          soft codes float32 `[B, h, w, D, K]` and codes int32 `[B, h, w, D]`.
        """
        quantized = quantizer.quantize(
            self.pack(z),
            self._codebook.value,
            depth=self.depth,
            sizes=self._own_sizes,
            temperature=temperature,
            stochastic=key is not None,
            key=key,
        )
        return quantized.soft, quantized.codes

    def decode(self, z: jax.Array) -> jax.Array:
        """Returns images, float32, about [-1, 1], of latents `[B, H, W, embed_dim]`."""
        return self._wide(self.decoder(self.post_quant_conv(z)))

    def _wide(self, x):
        return x.astype(at_least_float32(self.dtype))

    def decode_codes(self, codes: jax.Array, depth: int | None = None) -> jax.Array:
        """Returns images of codes `[B, h, w, D]`, or of their first `depth` depths.

        The codes may also have fewer than the model's D depths, the first ones.

        Raises:
          ValueError: where the codes are of another shape or `depth` is out of range.
        """
        return self.decode(jnp.sum(self.embed_codes(codes, depth), axis=-2))

    def embed_codes(self, codes: jax.Array, depth: int | None = None) -> jax.Array:
        """Returns code vectors `[B, H, W, depth, embed_dim]`, unpacked, not summed."""
        fits = codes.shape[1:3] == self.code_shape[:2]
        if not (fits and 1 <= codes.shape[3] <= self.depth):
            raise ValueError(f"codes {codes.shape[1:]}, the model's {self.code_shape}")
        if depth is not None and not 1 <= depth <= codes.shape[3]:
            raise ValueError(f"depth {depth} is not within 1..{codes.shape[3]}")
        vectors = quantizer.embed(codes[..., :depth], self._codebook.value.embedding)
        return jnp.moveaxis(self.unpack(jnp.moveaxis(vectors, -2, 0)), 0, -2)

    def codes(self, images: jax.Array) -> jax.Array:
        """Returns codes int32 `[B, h, w, D]` of images in [-1, 1]."""
        return self.quantize(self.encode(images))[1]

    def codes_and_features(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns codes and packed latents `[B, h, w, code_dim]`, for stage 2."""
        z = self.encode(images)
        return self.quantize(z)[1], self.pack(z)

    def pack(self, z: jax.Array) -> jax.Array:
        """Packs latents `[..., H, W, E]` to `[..., h, w, code_dim]`."""
        return quantizer.pack(z, *self.code_shape[:2])

    def unpack(self, z: jax.Array) -> jax.Array:
        """Inverts `pack`."""
        return quantizer.unpack(z, *self.latent_shape)
