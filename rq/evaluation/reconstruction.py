# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measures an RQ-VAE's reconstructions from 1, 2, ..., D codes per position."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from rq.data import pixels
from rq.data.pixels import to_float
from rq.metrics import code_usage as code_metrics
from rq.metrics.distances import frechet_distance
from rq.metrics.image_quality import SSIM_WINDOW, psnr_of_error, ssim
from rq.metrics.moments import Stream
from rq.models.build import perceptual_distance, rqvae_model
from rq.parallel import sharding
from rq.visualize import to_uint8

# Metric names of the perceptual distances in stage 1's loss.
DISTANCE_NAMES = {"none": "", "lpips": "lpips", "features": "feature_distance"}
# Code statistics to report, by depth.
STATISTICS = ("usage", "perplexity", "entropy_bits")


def by_depth(model, variables, images):
    """Returns codes `[B, h, w, D]` and reconstructions by depth `[D, B, H, W, C]`.

    Each depth decodes the sum of the code vectors so far (paper section 3.1).
    """
    codes = model.apply(variables, images, method="codes")
    outputs = [
        model.apply(variables, codes, depth, method="decode_codes")
        for depth in range(1, model.depth + 1)
    ]
    return codes, jnp.clip(jnp.stack(outputs), -1, 1)


def make_reconstructor(config, mesh) -> Reconstructor:
    """Returns a `Reconstructor` for a config's RQ-VAE and perceptual distance."""
    name = DISTANCE_NAMES[config.rqvae.loss.perceptual]
    return Reconstructor(rqvae_model(config), mesh, perceptual_distance(config), name)


def _at_full_precision(distance):
    """Returns the `PerceptualDistance` with the precision for reported numbers."""
    return distance.clone(precision="highest")


class Reconstructor:
    """Reconstructs and measures batches of images with one model, compiled once.

    Batches are dicts with 'image' (uint8, or floats in [-1, 1]) and 'mask', as from
    `rq.data.loader.in_order`.

    Attributes:
      model: the `RQVAE`.
      code_counts: how often the last `evaluate` saw each code, D arrays `[K_d]`; empty
        before.
    """

    def __init__(self, model, mesh, distance=None, distance_name: str = ""):
        """Compiles; `distance` is a `PerceptualDistance`, with a name for metrics."""
        self.model, self._mesh = model, mesh
        self._distance = None if distance is None else _at_full_precision(distance)
        self._distance_name = distance_name
        self.code_counts: list[np.ndarray] = []
        self._outputs_step = jax.jit(self._outputs)
        self._scores_step = jax.jit(self._scores)

    def _outputs(self, variables, frozen, images):
        del frozen
        codes, outputs = by_depth(self.model, variables, to_float(images))
        return codes, {"outputs": outputs}

    def _scores(self, variables, frozen, images):
        """Returns codes, and metrics `[D, B]` by name."""
        images = to_float(images)
        codes, outputs = by_depth(self.model, variables, images)
        scores = {"mse": jnp.mean((outputs - images) ** 2, axis=(-3, -2, -1))}
        if min(self.model.image_shape[:2]) >= SSIM_WINDOW:
            scores["ssim"] = jnp.stack([ssim(images, one) for one in outputs])
        if self._distance is not None and frozen:  # a given RQ-VAE comes without it
            params = {"params": frozen["distance"]}
            # One depth at a time: feature maps of all depths would not fit in memory.
            distances = [self._distance.apply(params, images, one) for one in outputs]
            scores[self._distance_name] = jnp.stack(distances)
        return codes, scores

    def _over(self, step, variables, frozen, batches):
        """Yields (images, codes, values by depth) on the host, without padding."""
        for batch in batches:
            with sharding.context(self._mesh):
                local = {name: batch[name] for name in ("image", "mask")}
                batch = sharding.shard_batch(local, self._mesh)
                codes, values = step(variables, frozen, batch["image"])
                batch, codes, values = sharding.to_host((batch, codes, values))
            mask = batch["mask"]
            yield (
                batch["image"][mask],
                codes[mask],
                {name: value[:, mask] for name, value in values.items()},
            )

    def evaluate(self, variables, frozen, batches: Iterable[dict]) -> dict[str, float]:
        """Returns means over images by depth, and statistics of their codes.

        Returns:
          'psnr/depth_1' and so on (mean over images, in decibels), 'mse', 'ssim', the
          distance by its name, and `STATISTICS`; 'usage/all' of the whole codebook.
        """
        codes, scores = [], []
        for _, some, values in self._over(
            self._scores_step, variables, frozen, batches
        ):
            codes.append(some)
            scores.append(values)
        scores = {k: np.concatenate([s[k] for s in scores], axis=1) for k in scores[0]}
        scores["psnr"] = psnr_of_error(scores["mse"])
        found = {name: value.mean(axis=1) for name, value in scores.items()}

        counts = code_metrics.histogram(np.concatenate(codes), self.model.sizes)
        self.code_counts = counts
        statistics = code_metrics.statistics(counts)
        found |= {name: statistics[name] for name in STATISTICS}
        metrics = {
            f"{name}/depth_{d + 1}": float(values[d])
            for name, values in sorted(found.items())
            for d in range(self.model.depth)
        }
        if self.model.shared_codebook:
            counts = [sum(counts)]
        metrics["usage/all"] = float(np.mean(np.concatenate(counts) > 0))
        return metrics

    def compare(
        self, variables, batches: Iterable[dict], extractor=None, lpips=None
    ) -> dict[str, float]:
        """Returns distances by depth, of the given networks.

        Args:
          variables, batches: see `evaluate`.
          extractor: from `rq.evaluation.extractors`, for 'rFID': the Frechet distance
            between reconstructions and originals, of two or more images.
          lpips: a `PerceptualDistance` and its parameters, for 'lpips': the mean over
            images.
        """
        depths = range(self.model.depth)
        originals, made = Stream(), [Stream() for _ in depths]
        apart, number = np.zeros(self.model.depth), 0
        module, params = None, {}
        if lpips is not None:
            module, params = _at_full_precision(lpips[0]), lpips[1]

        @jax.jit
        def step(variables, params, images):
            images = to_float(images)
            codes, outputs = by_depth(self.model, variables, images)
            values = {}
            if extractor is not None:
                values["pixels"] = pixels.to_uint8(outputs)
            if module is not None:
                distances = [
                    module.apply({"params": params}, images, x) for x in outputs
                ]
                values["lpips"] = jnp.stack(distances)
            return codes, values

        params = jax.device_put(params, sharding.replicated(self._mesh))
        for images, _, values in self._over(step, variables, params, batches):
            number += len(images)
            if extractor is not None:
                originals.add(extractor(to_uint8(images)).pool)
                for stream, one in zip(made, values["pixels"], strict=True):
                    stream.add(extractor(one).pool)
            if lpips is not None:
                apart += values["lpips"].sum(axis=1)
        found = {}
        for d in depths:
            if extractor is not None and number > 1:
                named = f" ({extractor.label})" if extractor.label else ""
                real, moments = originals.moments(), made[d].moments()
                assert real is not None and moments is not None  # of two images or more
                found[f"rFID{named}/depth_{d + 1}"] = frechet_distance(
                    real.mean, real.covariance, moments.mean, moments.covariance
                ).value
            if lpips is not None:
                found[f"lpips/depth_{d + 1}"] = float(apart[d] / number)
        return found

    def outputs(self, variables, batches: Iterable[dict], number: int):
        """Returns the first images, `number` at most, and their reconstructions.

        They are `[N, Y, X, C]` and, by depth, `[D, N, Y, X, C]`, in [-1, 1].
        """
        originals, reconstructed = [], []
        for images, _, values in self._over(self._outputs_step, variables, {}, batches):
            originals.append(to_float(images))
            reconstructed.append(values["outputs"])
            if sum(map(len, originals)) >= number:
                break
        return (
            np.concatenate(originals)[:number],
            np.concatenate(reconstructed, axis=1)[:, :number],
        )

    def codes(self, variables, batches: Iterable[dict]) -> np.ndarray:
        """Returns the codes of all images, int32 `[N, h, w, D]`."""
        batches = self._over(self._outputs_step, variables, {}, batches)
        return np.concatenate([codes for _, codes, _ in batches])
