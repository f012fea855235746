# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Losses of both stages: pure functions, float32.

Stage 1 adds its adversarial and perceptual terms here beside `reconstruction`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def reconstruction(images: jax.Array, outputs: jax.Array, kind: str) -> jax.Array:
    """Mean error of reconstructions in [-1, 1] (paper eq. 6): 'mse' or 'l1'."""
    error = images.astype(jnp.float32) - outputs.astype(jnp.float32)
    if kind == "mse":
        return jnp.mean(error**2)
    if kind == "l1":
        return jnp.mean(jnp.abs(error))
    raise ValueError(f"reconstruction loss {kind!r} is neither 'mse' nor 'l1'")


def cross_entropy(logits: jax.Array, codes: jax.Array) -> jax.Array:
    """Cross entropy with hard codes in nats: `[..., K]` and int `[...]` to `[...]`."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.take_along_axis(log_probs, codes[..., None], axis=-1)[..., 0]


def soft_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross entropy with soft targets (paper section 3.2.3): `[..., K]` to `[...]`.

    The targets are constants: no gradient runs into them.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.sum(jax.lax.stop_gradient(targets) * log_probs, axis=-1)
