# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Classifier-free guidance (Ho and Salimans 2022): its scales, and what they scale."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rq.config import SamplingConfig


def make_guidance(config: SamplingConfig, code_shape) -> jax.Array | None:
    """Returns the scale at every code, float32 `[T, D]`; None where guidance is off.

    Args:
      config: read for `guidance` and `guidance_schedule`.
      code_shape: (H, W, D); T = H W.

    Raises:
      ConfigError: where `guidance` has neither 1 nor D values.
    """
    height, width, depth = code_shape
    config.check_depth(depth)
    if all(scale == 1 for scale in config.guidance):
        return None
    scale = jnp.asarray(config.guidance, jnp.float32)
    progress = jnp.linspace(0, 1, height * width)[:, None]
    weight = {
        "constant": jnp.ones_like(progress),
        "linear": progress,
        "cosine": (1 - jnp.cos(jnp.pi * progress)) / 2,
    }[config.guidance_schedule]
    return jnp.broadcast_to(1 + (scale - 1) * weight, (len(progress), depth))


def combine(logits: jax.Array, scale: jax.Array) -> jax.Array:
    """Returns guided logits `[B, K]` of `[2 B, K]`: with the condition, then without.

    A scale of 1 changes no bit of those with the condition.
    """
    conditional, unconditional = jnp.split(logits, 2)
    return conditional + (scale - 1) * (conditional - unconditional)
