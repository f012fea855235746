# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Losses of both stages: pure functions, float32 (float64 stays what it is)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import nn


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def reconstruction(images: jax.Array, outputs: jax.Array, kind: str) -> jax.Array:
    """Mean error of reconstructions in [-1, 1] (paper eq. 6): 'mse' or 'l1'."""
    error = _wide(images) - _wide(outputs)
    if kind == "mse":
        return jnp.mean(error**2)
    if kind == "l1":
        return jnp.mean(jnp.abs(error))
    raise ValueError(f"reconstruction loss {kind!r} is neither 'mse' nor 'l1'")


def discriminator(real: jax.Array, fake: jax.Array, kind: str) -> jax.Array:
    """The discriminator's loss from its logits: 'hinge' or 'vanilla' (paper eq. 8).

    Half the sum of the means over real and fake patches.
    """
    real, fake = _wide(real), _wide(fake)
    if kind == "hinge":
        return 0.5 * (jnp.mean(nn.relu(1 - real)) + jnp.mean(nn.relu(1 + fake)))
    if kind == "vanilla":
        return 0.5 * (jnp.mean(nn.softplus(-real)) + jnp.mean(nn.softplus(fake)))
    raise ValueError(f"adversarial loss {kind!r} is neither 'hinge' nor 'vanilla'")


def generator(fake: jax.Array) -> jax.Array:
    """The generator's adversarial loss: minus the mean logit of what it made."""
    return -jnp.mean(_wide(fake))


def adaptive_weight(
    fidelity: jax.Array, adversarial: jax.Array, max_weight: float = 1e4
) -> jax.Array:
    """VQGAN's weight of the adversarial loss: a ratio of gradient norms.

    Args:
      fidelity: gradient of reconstruction and perceptual loss, with their weights, at
        the decoder's last convolution kernel.
      adversarial: the generator's adversarial gradient there.
      max_weight: upper bound.
    """
    norm = jnp.linalg.norm(fidelity.ravel())
    weight = norm / (jnp.linalg.norm(adversarial.ravel()) + 1e-4)
    return jax.lax.stop_gradient(jnp.clip(weight, 0, max_weight))


def lecam(real, fake, mean_real, mean_fake) -> jax.Array:
    """LeCam regularisation (Tseng et al. 2021), for little data.

    Pulls real logits towards the moving mean of fake ones, and the other way round.
    """
    return jnp.mean((_wide(real) - mean_fake) ** 2) + jnp.mean(
        (_wide(fake) - mean_real) ** 2
    )


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


def square_normalizer(logits: jax.Array) -> jax.Array:
    """Square of the logits' log-normaliser, `[..., K]` to `[...]`.

    Its mean, the z-loss (PaLM, section 5), keeps logits from drifting, which cross
    entropy does not see.
    """
    return jax.nn.logsumexp(_wide(logits), axis=-1) ** 2
