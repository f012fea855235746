# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Stage 1: trains an RQ-VAE on images (paper section 3.1)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rq import visualize
from rq.data.pixels import to_float
from rq.evaluation.reconstruction import Reconstructor
from rq.models.build import rqvae_model
from rq.models.networks.lpips import PerceptualDistance
from rq.training import losses
from rq.training.stages.adversary import Adversary
from rq.training.stages.stage import Stage
from rq.training.train_state import TrainState

PICTURED = 8  # images whose reconstructions are shown
DISTANCE_NAMES = {"lpips": "lpips", "features": "feature_distance"}


def distance_module(config) -> PerceptualDistance | None:
    """The perceptual distance of a config; None where it has none."""
    kind = config.rqvae.loss.perceptual
    if kind == "lpips":
        return PerceptualDistance()
    if kind == "features":
        model = config.features.model
        return PerceptualDistance(model.widths, model.convs, config.data.channels)
    return None


class RQVAEStage(Stage):
    """Reconstruction, commitment, perceptual and adversarial losses.

    One compiled step updates encoder and decoder, the codebook (by moving averages),
    and the discriminator.
    """

    name = "rqvae"

    def __init__(self, config, mesh, eval_batches, distance=None):
        """See `Stage`; evaluation batches have 'image' and 'mask'.

        Args:
          config, mesh, eval_batches: see `Stage`.
          distance: perceptual distance and its parameters, frozen: what
            `rq.convert.lpips_weights.load` or
            `rq.models.networks.lpips.own_distance` returns. Where
            None and the config wants one, it has random parameters, which serve to
            trace, or to be replaced by a checkpoint's.
        """
        super().__init__(config, mesh, eval_batches)
        self.model = rqvae_model(config)
        self.criterion = f"mse/depth_{self.model.depth}"
        if distance is None:
            distance = distance_module(config), None
        self.distance, self._distance_params = distance
        options = config.rqvae.adversarial
        self.adversary = Adversary(options, self.steps) if options.weight else None
        name = DISTANCE_NAMES.get(config.rqvae.loss.perceptual, "")
        self.reconstructor = Reconstructor(self.model, mesh, self.distance, name)

    def init(self, key) -> TrainState:
        """A new state; traceable, so that it can be sharded from the start."""
        init_key, state_key, adversary_key, frozen_key = jax.random.split(key, 4)
        side, channels = self.model.resolution, self.model.image_channels
        images = jnp.zeros((1, side, side, channels))
        variables = self.model.init(init_key, images)
        adversary, frozen = {}, {}
        if self.adversary is not None:
            adversary = self.adversary.init(adversary_key, images)
        if self.distance is not None:
            frozen = {"distance": self._distance_params}
            if self._distance_params is None:  # for tracing alone
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
        """Gradients of both sides (paper eq. 5 and 8), the state with statistics moved.

        The generator runs forward once. Its losses are differentiated at the images;
        where these gradients are pulled back to the last kernel alone, for the adaptive
        weight, the compiler drops all that leads elsewhere.
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
            weight = losses.adaptive_weight(
                *(
                    pull_back((at, *at_others))[0]["decoder"]["conv_out"]["conv"][
                        "kernel"
                    ]
                    for at in (at_images, adversarial)
                ),
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
        moved = state.replace(codebook=codebook, adversary=adversary)
        both = {"generator": grads, "discriminator": opposing}
        return both, moved, metrics | {"loss": loss}

    def _forward(self, model, images):
        """Within the model: outputs, codes, commitment loss, entropy loss (or 0)."""
        z = model.encode(images)
        options = self.config.rqvae.loss
        entropy = jnp.zeros((), z.dtype)
        if options.entropy_weight:  # of the codebook in force, so before it moves
            entropy = model.assignment_entropy(z, options.entropy_temperature)
        quantized, codes, commitment = model.quantize(z, train=True)
        return model.decode(quantized), codes, commitment, entropy

    def _fidelity(self, outputs, images, frozen):
        """Reconstruction and perceptual loss, with their weights; metrics."""
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
        """The state after the steps of both optimizers, metrics of the generator's."""
        adversary = state.adversary
        if self.adversary is not None:
            adversary = self.adversary.update(
                adversary, grads["discriminator"], state.step
            )
        state, metrics = super().update(state, grads["generator"])
        return state.replace(adversary=adversary), metrics

    def _variables(self, state: TrainState):
        return nn.unbox(state.model_variables()), nn.unbox(state.frozen)

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Quality and code statistics by depth on the evaluation split."""
        return self.reconstructor.evaluate(
            *self._variables(state), self._eval_batches()
        )

    def compare(self, state: TrainState, extractor=None, lpips=None):
        """Distances in further networks, see `Reconstructor.compare`."""
        variables, _ = self._variables(state)
        batches = self._eval_batches()
        return self.reconstructor.compare(variables, batches, extractor, lpips)

    def pictures(self, state: TrainState, number: int = PICTURED):
        """Reconstructions by depth beside the first `number` originals."""
        variables, _ = self._variables(state)
        outputs = self.reconstructor.outputs(variables, self._eval_batches(), number)
        return {"reconstructions": visualize.reconstructions(*outputs)}

    def codes(self, state: TrainState) -> np.ndarray:
        """Codes of the evaluation split, int32 `[N, h, w, D]`."""
        return self.reconstructor.codes(self._variables(state)[0], self._eval_batches())
