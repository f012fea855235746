# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""How probable the model finds given codes, exactly: log-likelihoods, and rankings."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from rq.models.transformer import RQTransformer


@functools.partial(jax.jit, static_argnums=0)
def log_likelihood(
    model: RQTransformer, params, codebook, codes: jax.Array, cond=None
) -> jax.Array:
    """log p of every code given those before it, in nats, float32 `[B, H, W, D]`.

    The sum over an image is its log-likelihood (the chain rule of paper section 3.2).

    Args:
      model, params, codebook: as `rq.sampling.program.sample` takes them.
      codes: int32 `[B, H, W, D]`.
      cond: int32 `[B]` classes or `[B, S]` text; None: the start token.
    """
    logits = model.apply({"params": params}, codes, cond, codebook)
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return jnp.take_along_axis(log_probs, codes[..., None], axis=-1)[..., 0]


def rank(model, params, codebook, codes: jax.Array, conds) -> jax.Array:
    """log p of each image under each of several conditions, float32 `[B, N]`.

    With equal priors `argmax` over them is Bayes' choice of the condition: a classifier
    that was never trained as one.

    Args:
      model, params, codebook, codes, conds: as in `by_condition`.
    """
    return jnp.sum(by_condition(model, params, codebook, codes, conds), axis=-1)


def by_condition(model, params, codebook, codes: jax.Array, conds) -> jax.Array:
    """log p of each image's codes by condition and depth, float32 `[B, N, D]`.

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
