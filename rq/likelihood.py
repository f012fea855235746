# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""How probable the model finds given codes, exactly: log-likelihoods, and rankings."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from rq import losses
from rq.models.transformer import RQTransformer


@functools.partial(jax.jit, static_argnums=0)
def log_likelihood(
    model: RQTransformer, params, codebook, codes: jax.Array, cond=None
) -> jax.Array:
    """log p of every code given those before it, in nats, float32 `[B, H, W, D]`.

    The sum over an image is its log-likelihood (the chain rule of paper section 3.2).

    Args:
      model, params, codebook: as `rq.sampling.sample` takes them.
      codes: int32 `[B, H, W, D]`.
      cond: int32 `[B]` classes or `[B, S]` text; None: the start token.
    """
    logits = model.apply({"params": params}, codes, cond, codebook)
    return -losses.cross_entropy(logits, codes)


def rank(model, params, codebook, codes: jax.Array, conds: jax.Array) -> jax.Array:
    """log p of each image under each of several conditions, float32 `[B, N]`.

    With equal priors `argmax` over them is Bayes' choice of the condition: a classifier
    that was never trained as one.

    Args:
      model, params, codebook: as in `log_likelihood`.
      codes: int32 `[B, H, W, D]`.
      conds: int32 `[N]` classes or `[N, S]` texts.
    """
    scores = [
        jnp.sum(
            log_likelihood(
                model,
                params,
                codebook,
                codes,
                jnp.broadcast_to(cond, (len(codes), *cond.shape)),
            ),
            axis=(1, 2, 3),
        )
        for cond in jnp.asarray(conds)
    ]
    return jnp.stack(scores, axis=1)
