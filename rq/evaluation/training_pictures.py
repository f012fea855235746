# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Makes what evaluations in training show: pictures, uint8 `[H, W, 3]`, by name."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from rq import visualize
from rq.config import SamplingConfig
from rq.evaluation.reconstruction import Reconstructor
from rq.models.build import ROTATIONS
from rq.sampling import conditions
from rq.sampling.sampler import Sampler
from rq.training.stages import FeaturesStage, RQVAEStage, TransformerStage
from rq.training.train_state import TrainState

NUMBER = 8  # images shown
ROWS = 10  # conditions shown, at most, with `NUMBER` samples of each


def inputs(stage: FeaturesStage) -> dict[str, np.ndarray]:
    """Returns a picture of the first evaluation inputs of the feature network."""
    batch = stage.first_eval_batch()
    images, _ = stage.examples(batch, jnp.arange(len(batch["image"])) % ROTATIONS)
    images = np.asarray(images)[batch["mask"]][:NUMBER]
    return {"images": visualize.grid(images, columns=NUMBER)}


def reconstructions(
    stage: RQVAEStage, reconstructor: Reconstructor, state: TrainState
) -> dict[str, np.ndarray]:
    """Returns the first evaluation images by depth, and how often codes are used.

    Call it after an evaluation with the same reconstructor.

    Returns:
      Pictures 'reconstructions' and 'code_usage', and 'code_usage/depth_1' and so on:
      the frequency of each code `[K_d]`, relative to that of codes used equally often.
    """
    variables = nn.unbox(state.model_variables())
    outputs = reconstructor.outputs(variables, stage.eval_batches(), NUMBER)
    counts = reconstructor.code_counts
    return {
        "reconstructions": visualize.reconstructions(*outputs),
        "code_usage": visualize.code_usage(counts),
    } | {f"code_usage/depth_{d + 1}": x / np.mean(x) for d, x in enumerate(counts)}


def samples(stage: TransformerStage, state: TrainState) -> dict[str, np.ndarray]:
    """Returns a picture of samples, a row for each class or evaluation condition."""
    config = stage.config
    kind, cond, rows = config.transformer.condition, None, 1
    paired = config.data.source != "none"
    if kind == "class" and not paired:
        cond = np.arange(min(config.data.num_classes, ROWS), dtype=np.int32)
    elif kind != "none" or paired:
        batch = stage.encoded(stage.frozen, stage.first_eval_batch())
        cond = np.asarray(conditions.make(config, batch))[:ROWS]
    if cond is not None:
        rows, cond = len(cond), np.repeat(cond, NUMBER, axis=0)
    sampler = Sampler(
        stage.model,
        state.model_variables(),
        stage.rqvae,
        stage.rqvae_variables,
        mesh=stage.mesh,
        null_cond=stage.null_cond,
    )
    options = SamplingConfig(**config.sampling).replace(seed=config.seed)
    found = sampler.sample(cond, rows * NUMBER, options)
    return {"samples": visualize.grid(found.images, columns=NUMBER)}
