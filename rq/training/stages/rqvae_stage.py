# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Stage 1: trains an RQ-VAE on images (paper section 3.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rq.convert import lpips_weights
from rq.data.pixels import to_float
from rq.models.build import perceptual_distance, rqvae_model
from rq.models.networks.lpips import own_distance
from rq.training import checkpoint, losses
from rq.training.stages.adversary import Adversary
from rq.training.stages.stage import Stage
from rq.training.train_state import TrainState

# Function of (variables, frozen networks, evaluation batches) that returns metrics,
# such as `rq.evaluation.reconstruction.Reconstructor.evaluate`.
Evaluator = Callable[[dict, dict, Iterable[dict]], dict[str, float]]


class RQVAEStage(Stage):
    """Trains with reconstruction, commitment, perceptual and adversarial losses.

    One compiled step updates encoder and decoder, the codebook (by moving averages),
    and the discriminator.
    """

    name = "rqvae"

    def __init__(
        self,
        config,
        mesh,
        eval_batches,
        distance=None,
        evaluator: Evaluator | None = None,
    ):
        """See `Stage`; evaluation batches have 'image' and 'mask'.

        Args:
          config, mesh, eval_batches: see `Stage`.
          distance: what `load_perceptual_distance` returns.
            If None and the config has one, its parameters are random: for tracing, or
            until a checkpoint is restored.
          evaluator: returns the metrics of `evaluate`.
        """
        super().__init__(config, mesh, eval_batches)
        self.model = rqvae_model(config)
        self.criterion = f"mse/depth_{self.model.depth}"
        if distance is None:
            distance = perceptual_distance(config), None
        self.distance, self._distance_params = distance
        options = config.rqvae.adversarial
        self.adversary = Adversary(options, self.steps) if options.weight else None
        self._evaluator: Any = evaluator

    def init(self, key) -> TrainState:
        """Returns a new state; traceable, so that it is created sharded."""
        init_key, state_key, adversary_key, frozen_key = jax.random.split(key, 4)
        images = jnp.zeros((1, *self.model.image_shape))
        variables = self.model.init(init_key, images)
        adversary, frozen = {}, {}
        if self.adversary is not None:
            adversary = self.adversary.init(adversary_key, images)
        if self.distance is not None:
            frozen = {"distance": self._distance_params}
            if self._distance_params is None:  # only for tracing
                random = self.distance.init(frozen_key, images, images)["params"]
                frozen = {"distance": random}
        return self.new_state(
            variables["params"],
            variables["codebook"],
            state_key,
            adversary=adversary,
            frozen=frozen,
        )

    def gradients(self, state: TrainState, batch, key):
        """Returns gradients of generator and discriminator (paper eq. 5 and 8).

        Also returns the state with updated statistics, and metrics. The generator runs
        forward once. Its losses are differentiated with respect to its images. For the
        adaptive weight these gradients are pulled back to the last kernel only; the
        compiler removes the rest of that backward pass.
        """
        images = to_float(batch["image"])
        weights = self.config.rqvae.loss

        def generate(params):
            (outputs, codes, commitment, entropy), moved = self.model.apply(
                {"params": params, "codebook": state.codebook},
                images,
                method=self._forward,
                mutable=["codebook"],
                rngs={"codebook": key},
            )
            return (outputs, commitment, entropy), (codes, moved["codebook"])

        generated, pull_back, (codes, codebook) = jax.vjp(
            generate, state.params, has_aux=True
        )
        outputs, commitment, entropy = generated
        (fidelity, metrics), at_images = jax.value_and_grad(
            self._fidelity, has_aux=True
        )(outputs, images, state.frozen)
        loss = fidelity + weights.commitment_weight * commitment
        metrics["loss/commitment"] = commitment
        if weights.entropy_weight:
            loss += weights.entropy_weight * entropy
            metrics["loss/entropy"] = entropy

        at_others = (jnp.zeros_like(commitment), jnp.zeros_like(entropy))
        adversary, opposing = state.adversary, {}
        if self.adversary is not None:
            adversarial, opposing, adversary, found = self.adversary.gradients(
                adversary, state.step, images, outputs
            )
            fidelity_grads, adversarial_grads = (
                pull_back((at, *at_others))[0]["decoder"]["conv_out"]["conv"]["kernel"]
                for at in (at_images, adversarial)
            )
            weight = losses.adaptive_weight(
                fidelity_grads,
                adversarial_grads,
                self.config.rqvae.adversarial.max_weight,
            )
            weight *= state.step >= self.config.rqvae.adversarial.start
            metrics |= found | {"adaptive_weight": weight}
            weight *= self.config.rqvae.adversarial.weight
            loss += weight * found["loss/generator"]
            at_images += weight * adversarial
        at_others = (
            jnp.full_like(commitment, weights.commitment_weight),
            jnp.full_like(entropy, weights.entropy_weight),
        )
        (grads,) = pull_back((at_images, *at_others))
        for d, size in enumerate(self.model.sizes):
            hit = jnp.zeros(size).at[codes[..., d].reshape(-1)].set(1.0)
            metrics[f"batch_usage/depth_{d + 1}"] = jnp.mean(hit)
        moved = dataclasses.replace(state, codebook=codebook, adversary=adversary)
        both = {"generator": grads, "discriminator": opposing}
        return both, moved, metrics | {"loss": loss}

    def _forward(self, model, images):
        """Returns the model's outputs, codes, commitment loss, entropy loss (or 0)."""
        z = model.encode(images)
        options = self.config.rqvae.loss
        entropy = jnp.zeros((), z.dtype)
        if options.entropy_weight:  # before `quantize` updates the codebook
            entropy = model.assignment_entropy(z, options.entropy_temperature)
        quantized, codes, commitment = model.quantize(z, train=True)
        return model.decode(quantized), codes, commitment, entropy

    def _fidelity(self, outputs, images, frozen):
        """Returns the weighted reconstruction and perceptual losses, and metrics."""
        weights = self.config.rqvae.loss
        loss = losses.reconstruction(images, outputs, weights.reconstruction)
        metrics = {"loss/reconstruction": loss}
        if self.distance is not None:
            perceptual = jnp.mean(
                self.distance.apply({"params": frozen["distance"]}, images, outputs)
            )
            metrics["loss/perceptual"] = perceptual
            loss += weights.perceptual_weight * perceptual
        return loss, metrics

    def update(self, state: TrainState, grads):
        """Returns the state after both optimizers' steps, and generator metrics."""
        adversary = state.adversary
        if self.adversary is not None:
            adversary = self.adversary.update(
                adversary, grads["discriminator"], state.step
            )
        state, metrics = super().update(state, grads["generator"])
        return dataclasses.replace(state, adversary=adversary), metrics

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Returns quality and code statistics by depth on the evaluation split."""
        variables, frozen = nn.unbox(state.model_variables()), nn.unbox(state.frozen)
        return self._evaluator(variables, frozen, self.eval_batches())


def load_perceptual_distance(config, workdir):
    """Returns the distance of the perceptual loss and its parameters, None without it.

    Raises:
      DataError: if the file of LPIPS weights is missing.
    """
    kind = config.rqvae.loss.perceptual
    if kind == "none":
        return None
    if kind == "lpips":
        return lpips_weights.load(config.rqvae.lpips_weights)
    features, _ = checkpoint.load_model(workdir / "features", "features")
    params = (features["ema"] or features["params"])["network"]
    model = config.features.model
    return own_distance(params, model.widths, model.convs, config.data.channels)
