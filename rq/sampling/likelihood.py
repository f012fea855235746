# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Exact log-likelihoods of given codes."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from rq.models.transformer import RQTransformer


@functools.partial(jax.jit, static_argnums=0)
def log_likelihood(
    model: RQTransformer, params, codebook, codes: jax.Array, cond=None, order=None
) -> jax.Array:
    """Returns log p of every code given those before it, nats, float32 `[B, H, W, D]`.

    The sum over an image is its log-likelihood (the chain rule of paper section 3.2).
    A model of any order has one for each order; they differ.

    Args:
      model, params, codebook: as `rq.sampling.sample` takes them.
      codes: int32 `[B, H, W, D]`.
      cond: int32 `[B]` classes or `[B, S]` tokens; None: the start token.
      order: int32 `[B, T]`, of a model of any order; None: row by row.
    """
    logits: Any = model.apply({"params": params}, codes, cond, codebook, order=order)
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return jnp.take_along_axis(log_probs, codes[..., None], axis=-1)[..., 0]


def by_condition(model, params, codebook, codes: jax.Array, conds) -> jax.Array:
    """Returns log p of each image's codes by condition and depth, float32 `[B, N, D]`.

    With equal priors the condition of the largest sum over depth is Bayes' choice: a
    classifier that was never trained as one.

    Args:
      model, params, codebook: as in `log_likelihood`.
      codes: int32 `[B, H, W, D]`.
      conds: int32 `[N]` classes or `[N, S]` texts; None: the start token alone, N = 1.
    """

    def under(cond):
        if cond is not None:
            cond = jnp.broadcast_to(cond, (len(codes), *cond.shape))
        by_code = log_likelihood(model, params, codebook, codes, cond)
        return jnp.sum(by_code, axis=(1, 2))

    each = [None] if conds is None else jnp.asarray(conds)
    return jnp.stack([under(cond) for cond in each], axis=1)
