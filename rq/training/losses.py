# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Losses of both stages: pure functions, in float32 (float64 stays float64)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import nn


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def reconstruction(images: jax.Array, outputs: jax.Array, kind: str) -> jax.Array:
    """Returns the mean error of images in [-1, 1] (paper eq. 6): 'mse' or 'l1'."""
    error = _wide(images) - _wide(outputs)
    if kind == "mse":
        return jnp.mean(error**2)
    if kind == "l1":
        return jnp.mean(jnp.abs(error))
    raise ValueError(f"reconstruction loss {kind!r} is neither 'mse' nor 'l1'")


def discriminator(real: jax.Array, fake: jax.Array, kind: str) -> jax.Array:
    """Returns the discriminator's loss from its logits (paper eq. 8).

    It is half the sum of the means over real and fake patches; `kind` is 'hinge' or
    'vanilla'.
    """
    real, fake = _wide(real), _wide(fake)
    if kind == "hinge":
        return 0.5 * (jnp.mean(nn.relu(1 - real)) + jnp.mean(nn.relu(1 + fake)))
    if kind == "vanilla":
        return 0.5 * (jnp.mean(nn.softplus(-real)) + jnp.mean(nn.softplus(fake)))
    raise ValueError(f"adversarial loss {kind!r} is neither 'hinge' nor 'vanilla'")


def generator(fake: jax.Array) -> jax.Array:
    """Returns the generator's adversarial loss: minus the mean logit of its images."""
    return -jnp.mean(_wide(fake))


def adaptive_weight(
    fidelity: jax.Array, adversarial: jax.Array, max_weight: float = 1e4
) -> jax.Array:
    """Returns VQGAN's weight of the adversarial loss: a ratio of gradient norms.

    Args:
      fidelity: gradient of the weighted reconstruction and perceptual losses with
        respect to the kernel of the decoder's last convolution.
      adversarial: gradient of the generator's adversarial loss, for the same kernel.
      max_weight: upper bound.
    """
    norm = jnp.linalg.norm(fidelity.ravel())
    weight = norm / (jnp.linalg.norm(adversarial.ravel()) + 1e-4)
    return jax.lax.stop_gradient(jnp.clip(weight, 0, max_weight))


def lecam(real, fake, mean_real, mean_fake) -> jax.Array:
    """Returns the LeCam regularisation (Tseng et al. 2021), for small data sets.

    Pulls real logits towards the moving mean of fake logits, and fake towards real.
    """
    return jnp.mean((_wide(real) - mean_fake) ** 2) + jnp.mean(
        (_wide(fake) - mean_real) ** 2
    )


def cross_entropy(logits: jax.Array, codes: jax.Array) -> jax.Array:
    """Returns cross entropies in nats `[...]`; logits `[..., K]`, codes int `[...]`."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.take_along_axis(log_probs, codes[..., None], axis=-1)[..., 0]


def soft_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns cross entropies `[...]` with soft targets (paper section 3.2.3).

    Logits and targets are `[..., K]`. No gradient flows into the targets.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.sum(jax.lax.stop_gradient(targets) * log_probs, axis=-1)


def square_normalizer(logits: jax.Array) -> jax.Array:
    """Returns the squared log-normaliser `[...]` of logits `[..., K]`.

    Its mean is the z-loss (PaLM, section 5). It keeps logits from drifting, to which
    cross entropy is invariant.
    """
    return jax.nn.logsumexp(_wide(logits), axis=-1) ** 2
