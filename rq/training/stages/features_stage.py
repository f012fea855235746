# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Stage 0 (optional): trains a small feature network on the data set.

Stage 1 can compute its perceptual distance, with the formula of LPIPS, from the frozen
features of this network, for data unlike ImageNet's. The network learns the classes or,
without labels, by how many quarter turns an image is rotated (Gidaris et al. 2018).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rq.config import image_shape
from rq.data.pixels import to_float
from rq.models.build import ROTATIONS, feature_classifier
from rq.parallel import sharding
from rq.training.stages.stage import Stage
from rq.training.train_state import TrainState


class FeaturesStage(Stage):
    """Trains with the cross entropy of classes or quarter turns."""

    name = "features"
    criterion = "cross_entropy"

    def __init__(self, config, mesh, eval_batches):
        """See `Stage`; evaluation batches have 'image', 'label' and 'mask'."""
        super().__init__(config, mesh, eval_batches)
        self.codes_per_image = 0
        self._rotates = self._part.objective == "rotation"
        self.model = feature_classifier(config)
        self._measuring_model = self.model.clone(precision="highest")
        self._eval_step = jax.jit(self._sums)

    def init(self, key) -> TrainState:
        """Returns a new state; traceable, so that it is created sharded."""
        init_key, state_key = jax.random.split(key)
        images = jnp.zeros((1, *image_shape(self.config.data)))
        params = self.model.init(init_key, images)["params"]
        return self.new_state(params, {}, state_key)

    def examples(self, batch, turns):
        """Returns images and their classes; 'rotation' turns them by `turns` `[B]`.

        Of images that are not square, it turns the square in the middle.
        """
        images = to_float(batch["image"])
        if not self._rotates:
            return images, batch["label"]
        side = min(images.shape[1:3])
        top, left = ((length - side) // 2 for length in images.shape[1:3])
        images = images[:, top : top + side, left : left + side]
        turned = jnp.stack(
            [jnp.rot90(images, k, axes=(1, 2)) for k in range(ROTATIONS)]
        )
        return turned[turns, jnp.arange(len(images))], turns

    def gradients(self, state: TrainState, batch, key):
        """Returns the gradients of a batch, the unchanged state, and metrics."""
        number = len(batch["image"])
        turns = jax.random.randint(key, (number,), 0, ROTATIONS)
        images, classes = self.examples(batch, turns)

        def loss(params):
            logits: Any = self.model.apply({"params": params}, images)
            by_image = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
            return jnp.mean(by_image), jnp.mean(jnp.argmax(logits, -1) == classes)

        (loss, accuracy), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        return grads, state, {"loss": loss, "accuracy": accuracy}

    def _sums(self, variables, batch):
        """Returns sums of cross entropy, hits and images; image k is turned k times."""
        turns = jnp.arange(len(batch["image"])) % ROTATIONS
        images, classes = self.examples(batch, turns)
        params = {"params": variables["params"]}
        logits: Any = self._measuring_model.apply(params, images)
        by_image = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
        hits = jnp.argmax(logits, -1) == classes
        mask = batch["mask"]
        return jnp.sum(by_image * mask), jnp.sum(hits * mask), jnp.sum(mask)

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Returns cross entropy in nats and accuracy on the evaluation split."""
        sums = np.zeros(3)
        variables = state.model_variables()
        for batch in self.eval_batches():
            with sharding.context(self.mesh):
                sharded = sharding.shard_batch(batch, self.mesh)
                sums += sharding.to_host(self._eval_step(variables, sharded))
        cross_entropy, accuracy = (float(x) for x in sums[:2] / sums[2])
        return {"cross_entropy": cross_entropy, "accuracy": accuracy}
