# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Stage 0, where it is asked for: a small feature network trained on the data set.

Stage 1 then measures perceptual distance on its features, frozen, with the formula of
LPIPS: for data on which ImageNet's features are absent or wrong. It learns to classify
or, where there are no labels, by how many quarter turns an image was rotated (Gidaris
et al. 2018).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rq import visualize
from rq.data.pixels import to_float
from rq.models.networks.lpips import FeatureNetwork
from rq.parallel import sharding
from rq.training.stages.stage import Stage
from rq.training.train_state import TrainState

TURNS = 4  # classes of the objective 'rotation'
PICTURED = 8  # images of each kind that are shown


class Classifier(nn.Module):
    """A linear layer on the averaged last feature map.

    Attributes:
      widths, convs: of the `FeatureNetwork`, which is what stage 1 takes.
      num_classes: logits.
    """

    widths: tuple[int, ...]
    convs: tuple[int, ...]
    num_classes: int

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images `[B, R, R, channels]` in [-1, 1] to logits `[B, num_classes]`."""
        return self.pool_and_logits(images)[1]

    @nn.compact
    def pool_and_logits(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The averaged feature map `[B, widths[-1]]`, and the logits."""
        features = FeatureNetwork(self.widths, self.convs, name="network")(images)
        pool = features[-1].mean(axis=(1, 2))
        return pool, nn.Dense(self.num_classes, name="head")(pool)


class FeaturesStage(Stage):
    """Cross entropy of classes or of quarter turns."""

    name = "features"
    criterion = "cross_entropy"

    def __init__(self, config, mesh, eval_batches):
        """See `Stage`; evaluation batches have 'image', 'label' and 'mask'."""
        super().__init__(config, mesh, eval_batches)
        self.codes_per_image = 0
        self._rotates = self._part.objective == "rotation"
        classes = TURNS if self._rotates else config.data.num_classes
        model = self._part.model
        self.model = Classifier(model.widths, model.convs, classes)
        self._eval_step = jax.jit(self._judge)

    def init(self, key) -> TrainState:
        """A new state; traceable, so that it can be sharded from the start."""
        init_key, state_key = jax.random.split(key)
        data = self.config.data
        images = jnp.zeros((1, data.resolution, data.resolution, data.channels))
        params = self.model.init(init_key, images)["params"]
        return self.new_state(params, {}, state_key)

    def examples(self, batch, turns):
        """Images, and the classes to tell them by; `turns` `[B]` are of 'rotation'."""
        images = to_float(batch["image"])
        if not self._rotates:
            return images, batch["label"]
        turned = jnp.stack([jnp.rot90(images, k, axes=(1, 2)) for k in range(TURNS)])
        return turned[turns, jnp.arange(len(images))], turns

    def gradients(self, state: TrainState, batch, key):
        """Gradients of a batch, the state as it is, metrics."""
        number = len(batch["image"])
        turns = jax.random.randint(key, (number,), 0, TURNS)
        images, classes = self.examples(batch, turns)

        def loss(params):
            logits = self.model.apply({"params": params}, images)
            by_image = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
            return jnp.mean(by_image), jnp.mean(jnp.argmax(logits, -1) == classes)

        (loss, accuracy), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        return grads, state, {"loss": loss, "accuracy": accuracy}

    def _judge(self, variables, batch):
        """Returns sums of cross entropies, hits, images; image k is turned k times."""
        turns = jnp.arange(len(batch["image"])) % TURNS
        images, classes = self.examples(batch, turns)
        logits = self.model.apply({"params": variables["params"]}, images)
        by_image = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
        hits = jnp.argmax(logits, -1) == classes
        mask = batch["mask"]
        return jnp.sum(by_image * mask), jnp.sum(hits * mask), jnp.sum(mask)

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Cross entropy in nats and accuracy on the evaluation split."""
        sums = np.zeros(3)
        variables = state.model_variables()
        for batch in self._eval_batches():
            with sharding.context(self.mesh):
                sharded = sharding.shard_batch(batch, self.mesh)
                sums += sharding.to_host(self._eval_step(variables, sharded))
        cross_entropy, accuracy = (float(x) for x in sums[:2] / sums[2])
        return {"cross_entropy": cross_entropy, "accuracy": accuracy}

    def pictures(self, state: TrainState) -> dict[str, np.ndarray]:
        """The first evaluation images, as the network sees them."""
        batch = self._first_eval_batch()
        turns = jnp.arange(len(batch["image"])) % TURNS
        images, _ = self.examples(batch, turns)
        images = np.asarray(images)[batch["mask"]][:PICTURED]
        return {"images": visualize.grid(images, columns=PICTURED)}
