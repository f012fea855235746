# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The adversary of stage 1: the discriminator, its losses and its optimizer.

Its state is a dictionary: `params`, `batch_stats`, `opt_state`, and `means`, the moving
means of real and fake logits for LeCam regularisation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from rq.models.networks.discriminator import Discriminator
from rq.training import losses
from rq.training import optimizer as optim

MEANS_DECAY = 0.99  # of the moving means of logits


class Adversary:
    """Trains a PatchGAN discriminator (paper section 3.1, after VQGAN)."""

    def __init__(self, options, steps: int):
        """Takes the section `rqvae.adversarial` of a config, and the stage's steps."""
        self.options = options
        self.module = Discriminator(options.ndf, options.layers)
        optimizer = options.optimizer
        self._tx = optim.make_optimizer(
            optimizer,
            optim.warmup_cosine(
                optimizer.learning_rate,
                max(steps - options.start, 1),
                optimizer.warmup_steps,
                optimizer.min_learning_rate,
            ),
        )

    def init(self, key, images) -> dict:
        """Returns the state before the first step, for images `[B, H, W, C]`."""
        variables = self.module.init(key, images)
        return {
            "params": variables["params"],
            "batch_stats": variables["batch_stats"],
            "means": {"real": jnp.zeros(()), "fake": jnp.zeros(())},
            "opt_state": self._tx.init(variables["params"]),
        }

    def gradients(self, adversary: dict, step, real, fake):
        """Returns the gradients of both adversarial losses.

        As in the authors' code, batch statistics are updated three times: by the fakes
        for the generator's loss, then by fakes and reals for the discriminator's.

        Args:
          adversary: state of the adversary.
          step: before `start` all gradients are zero, and the state stays the same.
          real, fake: images `[B, H, W, C]`.

        Returns:
          The gradient of the generator's loss (without a weight) with respect to
          `fake`; gradients of the discriminator's parameters; `adversary` with updated
          statistics; metrics.
        """
        at_fake, grads, moved, metrics = self._gradients(adversary, real, fake)
        if self.options.start == 0:
            return at_fake, grads, moved, metrics
        # Computed and dropped: a `cond` makes convolutions on the CPU several times
        # slower, in all later steps too.
        active = step >= self.options.start
        at_fake, grads, metrics = jax.tree.map(
            lambda x: jnp.where(active, x, 0), (at_fake, grads, metrics)
        )
        return at_fake, grads, _choose(active, moved, adversary), metrics

    def _gradients(self, adversary, real, fake):
        params, means = adversary["params"], adversary["means"]

        def logits(params, statistics, images):
            variables = {"params": params, "batch_stats": statistics}
            found, moved = self.module.apply(
                variables, images, train=True, mutable=["batch_stats"]
            )
            return found, moved["batch_stats"]

        def generator_loss(fake):
            found, moved = logits(params, adversary["batch_stats"], fake)
            return losses.generator(found), moved

        (generator, statistics), at_fake = jax.value_and_grad(
            generator_loss, has_aux=True
        )(fake)

        def discriminator_loss(params):
            fake_logits, moved = logits(params, statistics, fake)
            real_logits, moved = logits(params, moved, real)
            options = self.options
            adversarial = losses.discriminator(real_logits, fake_logits, options.loss)
            loss = options.weight * adversarial
            if options.lecam_weight:
                loss += options.lecam_weight * losses.lecam(
                    real_logits, fake_logits, means["real"], means["fake"]
                )
            if options.r1_weight:
                slope = jax.grad(lambda x: jnp.sum(logits(params, moved, x)[0]))(real)
                penalty = jnp.mean(jnp.sum(slope**2, axis=(1, 2, 3)))
                loss += 0.5 * options.r1_weight * penalty
            batch_means = {"real": jnp.mean(real_logits), "fake": jnp.mean(fake_logits)}
            return loss, (moved, batch_means, adversarial)

        grads, (statistics, batch_means, adversarial) = jax.grad(
            discriminator_loss, has_aux=True
        )(params)
        means = optim.ema_update(means, batch_means, MEANS_DECAY)
        metrics = {
            "loss/generator": generator,
            "loss/discriminator": adversarial,
            "logits/real": batch_means["real"],
            "logits/fake": batch_means["fake"],
        }
        moved = adversary | {"batch_stats": statistics, "means": means}
        return at_fake, grads, moved, metrics

    def update(self, adversary: dict, grads, step) -> dict:
        """Returns the state after the optimizer's step; unchanged before `start`."""
        old = {name: adversary[name] for name in ("params", "opt_state")}
        updates, opt_state = self._tx.update(grads, old["opt_state"], old["params"])
        params = optax.apply_updates(old["params"], updates)
        new = {"params": params, "opt_state": opt_state}
        if self.options.start:
            new = _choose(step >= self.options.start, new, old)
        return adversary | new


def _choose(condition, a, b):
    """Returns the tree `a` if the condition holds, or else `b`."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)
