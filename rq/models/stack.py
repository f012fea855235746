# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Stacks of causal transformer blocks (paper section 3.2), pre-norm, with caches.

Legend: B batch, T sequence, S keys, M width, N heads, F head dimension, L layers.

Dtypes: parameters float32; matrix products in `dtype`; layer norms and softmax float32.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rq.models.autoencoder import uniform_fan_in
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


class Cache(NamedTuple):
    """Holds keys and values of one layer, `[B, length, N, F]` each."""

    keys: jax.Array
    values: jax.Array


def linear(
    features, axes, dtype, bias=True, fan_in=None, name=None, scale=1.0
) -> nn.Dense:
    """Returns a dense layer with PyTorch's initialisation times `scale`, named axes."""
    init = uniform_fan_in(fan_in / scale**2)
    return nn.Dense(
        features,
        use_bias=bias,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(init, axes),
        bias_init=nn.with_logical_partitioning(init, axes[1:]),
        name=name,
    )


def layer_norm(name=None) -> nn.LayerNorm:
    """Returns a LayerNorm with float32 statistics in two passes, as the authors."""
    return nn.LayerNorm(
        epsilon=1e-5,
        use_fast_variance=False,
        dtype=jnp.float32,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("embed",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)),
        name=name,
    )


def norm(kind: str, axis: str | None = "embed", name=None) -> nn.Module:
    """Returns the normalisation of a stack, 'layer' or 'rms', in float32."""
    if kind == "layer":
        return layer_norm(name)
    return nn.RMSNorm(
        epsilon=1e-5,
        dtype=jnp.float32,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, (axis,)),
        name=name,
    )


class Attention(nn.Module):
    """Causal multi-head self-attention over a whole sequence or over a cache."""

    config: StackConfig
    dtype: Any
    deterministic: bool

    @nn.compact
    def __call__(self, x_BTM, cache: Cache | None = None, index=0):
        batch, length, width = x_BTM.shape
        heads = self.config.heads

        def project(name):
            axes, bias = ("embed", "heads"), self.config.attention_bias
            layer = linear(width, axes, self.dtype, bias, width, name)
            return layer(x_BTM).reshape(batch, length, heads, width // heads)

        q_BTNF, k_BSNF, v_BSNF = project("query"), project("key"), project("value")
        if self.config.qk_norm:
            q_BTNF, k_BSNF = (
                norm("rms", None, name)(x).astype(self.dtype)
                for x, name in ((q_BTNF, "query_norm"), (k_BSNF, "key_norm"))
            )
        if cache is not None:
            start = (0, index, 0, 0)
            cache = Cache(
                jax.lax.dynamic_update_slice(cache.keys, k_BSNF, start),
                jax.lax.dynamic_update_slice(cache.values, v_BSNF, start),
            )
            k_BSNF, v_BSNF = cache
        scores_BNTS = jnp.einsum(
            "btnf,bsnf->bnts", q_BTNF, k_BSNF, preferred_element_type=jnp.float32
        )
        scores_BNTS *= (width // heads) ** -0.5
        seen_TS = jnp.arange(k_BSNF.shape[1]) <= index + jnp.arange(length)[:, None]
        weights_BNTS = nn.softmax(jnp.where(seen_TS, scores_BNTS, -jnp.inf), axis=-1)
        weights_BNTS = nn.Dropout(self.config.attention_dropout)(
            weights_BNTS.astype(self.dtype), deterministic=self.deterministic
        )
        x_BTM = jnp.einsum("bnts,bsnf->btnf", weights_BNTS, v_BSNF)
        x_BTM = x_BTM.reshape(batch, length, width)
        axes, bias = ("heads", "embed"), self.config.attention_bias
        scale = self.config.output_scale
        proj = linear(width, axes, self.dtype, bias, width, "proj", scale)
        return proj(x_BTM), cache


class Block(nn.Module):
    """Adds pre-norm attention and a 4 × wider MLP, with dropout, to shortcuts."""

    config: StackConfig
    dtype: Any
    deterministic: bool

    @nn.compact
    def __call__(self, x_BTM, cache: Cache | None = None, index=0):
        width, bias = x_BTM.shape[-1], self.config.mlp_bias
        dropout = nn.Dropout(
            self.config.residual_dropout, deterministic=self.deterministic
        )
        attention = Attention(
            self.config, self.dtype, self.deterministic, name="attention"
        )
        y_BTM = norm(self.config.norm, name="norm1")(x_BTM).astype(self.dtype)
        y_BTM, cache = attention(y_BTM, cache, index)
        x_BTM += dropout(y_BTM)

        y_BTM = norm(self.config.norm, name="norm2")(x_BTM).astype(self.dtype)
        axes = ("embed", "mlp")
        y = linear(4 * width, axes, self.dtype, bias, width, "mlp_in")(y_BTM)
        if self.config.gelu == "exact":
            y = nn.gelu(y, approximate=False)
        else:
            y = y * nn.sigmoid(1.702 * y)
        scale = self.config.output_scale
        out = linear(width, axes[::-1], self.dtype, bias, 4 * width, "mlp_out", scale)
        y = out(y)
        x_BTM += dropout(y)
        return sharding.constrain(x_BTM, "batch", None, None), cache


_REMAT_POLICIES = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Stack(nn.Module):
    """Applies L blocks, scanned over stacked parameters or one after another.

    Training scans, so that compile time does not grow with depth. Decoding reads layers
    as separate arrays (`unroll`), so that no weights are sliced inside its loops.
    """

    config: StackConfig
    dtype: Any
    remat: str
    scan_layers: bool

    @nn.compact
    def __call__(self, x_BTM, caches=None, index=0, deterministic: bool = True):
        args = (self.config, self.dtype, deterministic)
        if not self.scan_layers:
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
