# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Stage 1: trains an RQ-VAE on images (paper section 3.1)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rq import losses, sharding, visualize
from rq.config import rqvae_model
from rq.data.pixels import to_float
from rq.evaluation import codes as code_metrics
from rq.evaluation.images import psnr_of_error
from rq.models.lpips import PerceptualDistance
from rq.stages.adversary import Adversary
from rq.stages.stage import Stage
from rq.state import TrainState

PICTURED = 8  # images whose reconstructions are shown


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
            `rq.convert.lpips.load` or `rq.models.lpips.own_distance` returns. Where
            None and the config wants one, it has random parameters, which serve to
            trace, or to be replaced by a checkpoint's.
        """
        super().__init__(config, mesh, eval_batches)
        self.model = rqvae_model(config)
        if distance is None:
            distance = distance_module(config), None
        self.distance, self._distance_params = distance
        options = config.rqvae.adversarial
        self.adversary = Adversary(options, self.steps) if options.weight else None
        self._eval_step = jax.jit(self._errors)
        self._reconstruct = jax.jit(self.reconstruct_by_depth)

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

    def reconstruct_by_depth(self, variables, images):
        """Images to codes `[B, h, w, D]` and images by depth `[D, B, R, R, C]`."""
        codes = self.model.apply(variables, images, method="codes")
        outputs = [
            self.model.apply(variables, codes, depth, method="decode_codes")
            for depth in range(1, self.model.depth + 1)
        ]
        return codes, jnp.clip(jnp.stack(outputs), -1, 1)

    def _errors(self, variables, images):
        """Images to codes and mean squared errors by depth `[D, B]`."""
        codes, outputs = self.reconstruct_by_depth(variables, images)
        return codes, jnp.mean((outputs - images) ** 2, axis=(-3, -2, -1))

    def _over_batches(self, function, state):
        """(images, codes, what else `function` returns) of each batch, on the host."""
        variables = nn.unbox(state.model_variables())
        for batch in self._eval_batches():
            with sharding.context(self.mesh):
                images = sharding.shard_batch({"image": batch["image"]}, self.mesh)
                codes, values = jax.device_get(function(variables, images["image"]))
            mask = batch["mask"]
            yield batch["image"][mask], codes[mask], values[:, mask]

    def evaluate(self, state: TrainState) -> dict:
        """PSNR and code statistics by depth on the evaluation split."""
        codes, errors = [], []
        for _, batch_codes, batch_errors in self._over_batches(self._eval_step, state):
            codes.append(batch_codes)
            errors.append(batch_errors)
        codes, errors = np.concatenate(codes), np.concatenate(errors, axis=1)
        scores = psnr_of_error(errors).mean(axis=1)
        counts = code_metrics.histogram(codes, self.model.sizes)
        statistics = code_metrics.statistics(counts)
        metrics = {}
        for d in range(self.model.depth):
            metrics[f"psnr/depth_{d + 1}"] = float(scores[d])
            for name in ("usage", "perplexity"):
                metrics[f"{name}/depth_{d + 1}"] = float(statistics[name][d])
        if self.model.shared_codebook:
            counts = [sum(counts)]
        used = np.concatenate(counts) > 0
        metrics["usage/all"] = float(np.mean(used))
        return metrics

    def pictures(self, state: TrainState, number: int = PICTURED):
        """Reconstructions by depth beside the first `number` originals."""
        originals, reconstructed = [], []
        for images, _, outputs in self._over_batches(self._reconstruct, state):
            originals.append(images)
            reconstructed.append(outputs)
            if sum(map(len, originals)) >= number:
                break
        originals = np.concatenate(originals)[:number]
        reconstructed = np.concatenate(reconstructed, axis=1)[:, :number]
        picture = visualize.reconstructions(originals, reconstructed)
        return {"reconstructions": picture}

    def codes(self, state: TrainState) -> np.ndarray:
        """Codes of the evaluation split, int32 `[N, h, w, D]`."""
        batches = self._over_batches(self._eval_step, state)
        return np.concatenate([codes for _, codes, _ in batches])
