# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Stacks of causal transformer blocks (paper section 3.2), pre-norm, with caches.

Training reads whole sequences; its layers are scanned over stacked parameters, so that
compile time does not grow with their number. Decoding reads one token after another and
keeps keys and values in caches; its layers are separate arrays, so that no weights are
sliced inside its loops, with output-major weights (`rq.models.projection`).

Legend: B batch, T sequence, S keys, M width, N heads, F head dimension, L layers.

Dtypes: parameters float32; matrix products in `dtype`; layer norms and softmax float32.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rq.models.activations import gelu, identity, quick_gelu
from rq.models.autoencoder import uniform_fan_in
from rq.models.linear import Linear
from rq.models.projection import Projection
from rq.models.row_sums import total
from rq.parallel import sharding


@dataclasses.dataclass(frozen=True)
class StackConfig:
    """Settings of one stack of blocks, the body or the head.

    Attributes:
      layers: L.
      heads: N, divides the width.
      gelu: 'exact' (erf), or 'quick' (x sigmoid(1.702 x), the authors' v2).
      residual_dropout: after the attention's and the MLP's output projection.
      attention_dropout: of attention weights.
      attention_bias, mlp_bias: whether their matrices have biases.
      norm: 'layer' (the paper's), or 'rms' (no mean, no bias).
      qk_norm: normalises queries and keys of each head, which bounds the attention's
        logits in long training of large models (Dehghani et al. 2023).
      scaled_init: initialises what attention and MLP add by 1 / sqrt(2 L) of the usual,
        so that the sum over L layers does not grow with L (as GPT-2 does).
    """

    layers: int
    heads: int
    gelu: str = "exact"
    residual_dropout: float = 0.1
    attention_dropout: float = 0.0
    attention_bias: bool = True
    mlp_bias: bool = True
    norm: str = "layer"
    qk_norm: bool = False
    scaled_init: bool = False

    @property
    def output_scale(self) -> float:
        """Factor of the initial matrices whose products are added to the shortcut."""
        return (2 * self.layers) ** -0.5 if self.scaled_init else 1.0


QKV = ("query", "key", "value")


class Group(NamedTuple):
    """Places in a cache of tokens that are read at once: a chain, then queries.

    Each token of the chain, C in all, sees those before it; each of the G queries sees
    all that is before the first of them, and itself.

    Attributes:
      chain: place of the first token of the chain.
      queries: place of the first query, which may be inside the chain: what follows
        there is overwritten.
      number: G, how many of the last tokens are queries.
    """

    chain: jax.Array
    queries: jax.Array
    number: int

    def write(self, cache, new):
        """Returns the cache `[2, B, N, S, F]` with new `[2, B, N, C + G, F]`."""
        size = new.shape[3] - self.number
        chain, queries = new[:, :, :, :size], new[:, :, :, size:]
        for tokens, place in ((chain, self.chain), (queries, self.queries)):
            cache = jax.lax.dynamic_update_slice(cache, tokens, (0, 0, 0, place, 0))
        return cache

    def seen(self, number: int, length: int):
        """Returns what each of C + G tokens sees, bool `[number, length]`."""
        places = jnp.arange(length)
        chain = self.chain + jnp.arange(number - self.number)[:, None]
        queries = self.queries + jnp.arange(self.number)[:, None]
        own = (places < self.queries) | (places == queries)
        return jnp.concatenate([places <= chain, own])


def linear(
    features,
    axes,
    dtype,
    bias=True,
    fan_in=None,
    name=None,
    scale=1.0,
    precision=None,
    activation=identity,
) -> nn.Module:
    """Returns a dense layer with PyTorch's initialisation times `scale`, named axes.

    It multiplies the activations of its inputs. With a `precision` it is the same layer
    for decoding.
    """
    if precision is not None:
        return Projection(
            (features,), axes[::-1], precision, dtype, bias, activation, name=name
        )
    init = uniform_fan_in(fan_in / scale**2)
    return Linear(
        features,
        use_bias=bias,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(init, axes),
        bias_init=nn.with_logical_partitioning(init, axes[1:]),
        activation=activation,
        name=name,
    )


EPSILON = 1e-5  # of every norm


def norm(
    kind: str, axis: str | None = "embed", name=None, decoding: bool = False
) -> nn.Module:
    """Returns the normalisation of a stack, 'layer' or 'rms', in float32.

    A LayerNorm has its variance in two passes, as the authors'.
    """
    if kind == "layer" and decoding:
        return DecodingLayerNorm(name=name)
    ones, zeros = (
        nn.with_logical_partitioning(init, (axis,))
        for init in (nn.initializers.ones, nn.initializers.zeros)
    )
    settings = dict(epsilon=EPSILON, dtype=jnp.float32, scale_init=ones, name=name)
    if kind == "layer":
        return nn.LayerNorm(use_fast_variance=False, bias_init=zeros, **settings)
    return nn.RMSNorm(**settings)


class DecodingLayerNorm(nn.Module):
    """The same LayerNorm for the few rows of decoding: fast on CPU."""

    @nn.compact
    def __call__(self, x):
        def parameter(name, init):
            init = nn.with_logical_partitioning(init, ("embed",))
            return self.param(name, init, x.shape[-1:], jnp.float32)

        scale = parameter("scale", nn.initializers.ones)
        bias = parameter("bias", nn.initializers.zeros)
        x = x.astype(jnp.float32)
        x -= total(x) / x.shape[-1]
        variance = total(x**2) / x.shape[-1]
        return x * (jax.lax.rsqrt(variance + EPSILON) * scale) + bias


class Attention(nn.Module):
    """Causal multi-head self-attention over a whole sequence, or over a cache.

    Attributes:
      config: settings of the stack.
      dtype: of matrix products.
      deterministic: no dropout.
      precision: of the weights for decoding; None: training.
    """

    config: StackConfig
    dtype: Any
    deterministic: bool
    precision: str | None = None

    @nn.compact
    def __call__(self, x_BTM, cache: jax.Array | None = None, index=0):
        """Returns outputs `[B, T, M]` and the cache.

        Args:
          x_BTM: inputs; with a cache T = 1, except at index 0 and in a `Group`.
          cache: keys and values `[2, B, N, S, F]`, updated from `index` on.
          index: position of the first input in the cache, or a `Group`.
        """
        batch, length, width = x_BTM.shape
        q_BTNF, k_BTNF, v_BTNF = self._project(x_BTM)
        if cache is not None:
            new = jnp.stack([k_BTNF, v_BTNF]).swapaxes(2, 3)
            if isinstance(index, Group):
                cache = index.write(cache, new)
            else:
                cache = jax.lax.dynamic_update_slice(cache, new, (0, 0, 0, index, 0))
            # Otherwise XLA repeats the update in every kernel that reads the cache, and
            # GPUs need several for the attention.
            cache = jax.lax.optimization_barrier(cache)
        if cache is not None and isinstance(index, Group):
            keys_BSNF, values_BSNF = cache.swapaxes(2, 3)
            seen_TS = index.seen(length, cache.shape[3])
            x_BTNF = self._of_a_sequence(q_BTNF, keys_BSNF, values_BSNF, seen_TS)
        elif cache is not None and length == 1:
            x_BTNF = self._of_one_token(q_BTNF, cache, index)
        else:
            seen_TS = jnp.arange(length) <= jnp.arange(length)[:, None]
            x_BTNF = self._of_a_sequence(q_BTNF, k_BTNF, v_BTNF, seen_TS)
        x_BTM = x_BTNF.reshape(batch, length, width)
        axes, bias = ("heads", "embed"), self.config.attention_bias
        scale = self.config.output_scale
        proj = linear(
            width, axes, self.dtype, bias, width, "proj", scale, self.precision
        )
        return proj(x_BTM), cache

    def _project(self, x_BTM):
        """Returns queries, keys and values `[B, T, N, F]`."""
        batch, length, width = x_BTM.shape
        heads, bias = self.config.heads, self.config.attention_bias
        if self.precision is None:
            projected = [
                linear(width, ("embed", "heads"), self.dtype, bias, width, name)(x_BTM)
                for name in QKV
            ]
        else:  # one product reads all three
            features, axes = (3, heads, width // heads), (None, "heads", None, "embed")
            qkv = Projection(
                features, axes, self.precision, self.dtype, bias, name="qkv"
            )
            projected = jnp.moveaxis(qkv(x_BTM), 2, 0)
        q, k, v = (x.reshape(batch, length, heads, width // heads) for x in projected)
        if self.config.qk_norm:
            q = norm("rms", None, "query_norm")(q).astype(self.dtype)
            k = norm("rms", None, "key_norm")(k).astype(self.dtype)
        return q, k, v

    def _of_a_sequence(self, q_BTNF, k_BSNF, v_BSNF, seen_TS):
        scores_BNTS = jnp.einsum(
            "btnf,bsnf->bnts", q_BTNF, k_BSNF, preferred_element_type=jnp.float32
        )
        scores_BNTS *= q_BTNF.shape[-1] ** -0.5
        weights_BNTS = nn.softmax(jnp.where(seen_TS, scores_BNTS, -jnp.inf), axis=-1)
        weights_BNTS = nn.Dropout(self.config.attention_dropout)(
            weights_BNTS.astype(self.dtype), deterministic=self.deterministic
        )
        return jnp.einsum("bnts,bsnf->btnf", weights_BNTS, v_BSNF)

    def _of_one_token(self, q_B1NF, cache, index):
        """Returns the same for the last position, from the cache.

        Sums of products, which compilers fuse with the reading of the cache: matrix
        products of one row are slow on CPUs, and one kernel each on GPUs.
        """
        keys_BNSF, values_BNSF = cache.astype(jnp.float32)
        q_BN1F = jnp.swapaxes(q_B1NF, 1, 2).astype(jnp.float32)
        scores_BNS = jnp.sum(q_BN1F * keys_BNSF, axis=-1) * q_B1NF.shape[-1] ** -0.5
        seen_S = jnp.arange(cache.shape[3]) <= index
        weights_BNS = nn.softmax(jnp.where(seen_S, scores_BNS, -jnp.inf), axis=-1)
        # Rounded where the product of a whole sequence rounds.
        weights_BNS = weights_BNS.astype(self.dtype).astype(jnp.float32)
        x_BNF = jnp.sum(weights_BNS[..., None] * values_BNSF, axis=2)
        return x_BNF[:, None].astype(self.dtype)


class Block(nn.Module):
    """Adds pre-norm attention and a 4 × wider MLP, with dropout, to shortcuts."""

    config: StackConfig
    dtype: Any
    deterministic: bool
    precision: str | None = None

    @nn.compact
    def __call__(self, x_BTM, cache: jax.Array | None = None, index=0):
        width, bias = x_BTM.shape[-1], self.config.mlp_bias
        dropout = nn.Dropout(
            self.config.residual_dropout, deterministic=self.deterministic
        )
        attention = Attention(
            self.config,
            self.dtype,
            self.deterministic,
            self.precision,
            name="attention",
        )

        def normed(name):
            layer = norm(self.config.norm, name=name, decoding=bool(self.precision))
            return layer(x_BTM).astype(self.dtype)

        y_BTM = normed("norm1")
        y_BTM, cache = attention(y_BTM, cache, index)
        x_BTM += dropout(y_BTM)

        y_BTM = normed("norm2")

        def dense(features, axes, fan_in, name, **options):
            settings = dict(fan_in=fan_in, name=name, precision=self.precision)
            return linear(features, axes, self.dtype, bias, **settings, **options)

        hidden = dense(4 * width, ("embed", "mlp"), width, "mlp_in")(y_BTM)
        activation = gelu if self.config.gelu == "exact" else quick_gelu
        scale = self.config.output_scale
        axes = ("mlp", "embed")
        output = dense(
            width, axes, 4 * width, "mlp_out", scale=scale, activation=activation
        )
        x_BTM += dropout(output(hidden))
        return sharding.constrain(x_BTM, "batch", None, None), cache


_REMAT_POLICIES = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Stack(nn.Module):
    """Applies L blocks: scanned for training, one after another for decoding.

    Attributes:
      config: settings.
      dtype: of matrix products.
      remat: 'none', 'full' or 'dots', for training.
      precision: of the weights for decoding; None: training.
    """

    config: StackConfig
    dtype: Any
    remat: str = "none"
    precision: str | None = None

    @nn.compact
    def __call__(self, x_BTM, caches=None, index=0, deterministic: bool = True):
        """Returns outputs `[B, T, M]` and caches, see `Attention`."""
        args = (self.config, self.dtype, deterministic, self.precision)
        if self.precision is not None:
            caches = caches or (None,) * self.config.layers
            updated = []
            for layer, cache in enumerate(caches):
                x_BTM, cache = Block(*args, name=f"blocks_{layer}")(x_BTM, cache, index)
                updated.append(cache)
            return x_BTM, tuple(updated)
        if caches is not None:
            raise ValueError("decoding with caches needs unrolled layers: see `unroll`")
        block = Block
        if self.remat != "none":
            policy = _REMAT_POLICIES[self.remat]
            block = nn.remat(Block, prevent_cse=False, policy=policy)
        blocks = nn.scan(
            block,
            length=self.config.layers,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return blocks(*args, name="blocks")(x_BTM)
