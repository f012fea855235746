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
from rq.evaluation import codes as code_metrics
from rq.evaluation.images import psnr_of_error
from rq.stages.stage import Stage
from rq.state import TrainState

PICTURED = 8  # images whose reconstructions are shown


class RQVAEStage(Stage):
    """Reconstruction and commitment loss, codebook by moving averages.

    Adversarial and perceptual terms belong in `loss`, beside the reconstruction.
    """

    name = "rqvae"

    def __init__(self, config, mesh, eval_batches):
        """See `Stage`; evaluation batches have 'image' and 'mask'."""
        super().__init__(config, mesh, eval_batches)
        self.model = rqvae_model(config)
        self._eval_step = jax.jit(self._errors)
        self._reconstruct = jax.jit(self.reconstruct_by_depth)

    def init(self, key) -> TrainState:
        """A new state; traceable, so that it can be sharded from the start."""
        init_key, state_key = jax.random.split(key)
        side, channels = self.model.resolution, self.model.image_channels
        variables = self.model.init(init_key, jnp.zeros((1, side, side, channels)))
        return self.new_state(variables["params"], variables["codebook"], state_key)

    def loss(self, params, codebook, batch, key):
        """Loss (paper eq. 5) of a batch, with (the updated codebook, metrics)."""
        (outputs, codes, commitment), updated = self.model.apply(
            {"params": params, "codebook": codebook},
            batch["image"],
            train=True,
            mutable=["codebook"],
            rngs={"codebook": key},
        )
        weights = self.config.rqvae.loss
        reconstruction = losses.reconstruction(
            batch["image"], outputs, weights.reconstruction
        )
        loss = reconstruction + weights.commitment_weight * commitment
        metrics = {
            "loss": loss,
            "loss/reconstruction": reconstruction,
            "loss/commitment": commitment,
        }
        for d, size in enumerate(self.model.sizes):
            hit = jnp.zeros(size).at[codes[..., d].reshape(-1)].set(1.0)
            metrics[f"batch_usage/depth_{d + 1}"] = jnp.mean(hit)
        return loss, (updated["codebook"], metrics)

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
