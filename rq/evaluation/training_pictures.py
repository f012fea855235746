# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pictures that the train loop writes at each evaluation, uint8 `[H, W, 3]` by name."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from rq import visualize
from rq.evaluation.reconstruction import Reconstructor
from rq.models.build import ROTATIONS
from rq.training.stages import FeaturesStage, RQVAEStage
from rq.training.train_state import TrainState

NUMBER = 8  # images shown


def inputs(stage: FeaturesStage) -> dict[str, np.ndarray]:
    """Returns a picture of the first evaluation images as the feature network's."""
    batch = stage.first_eval_batch()
    images, _ = stage.examples(batch, jnp.arange(len(batch["image"])) % ROTATIONS)
    images = np.asarray(images)[batch["mask"]][:NUMBER]
    return {"images": visualize.grid(images, columns=NUMBER)}


def reconstructions(
    stage: RQVAEStage, reconstructor: Reconstructor, state: TrainState
) -> dict[str, np.ndarray]:
    """Returns a picture of the first evaluation images, reconstructed by depth."""
    variables = nn.unbox(state.model_variables())
    outputs = reconstructor.outputs(variables, stage.eval_batches(), NUMBER)
    return {"reconstructions": visualize.reconstructions(*outputs)}
