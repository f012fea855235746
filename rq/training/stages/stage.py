# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The base class of all stages, with the optimizer and the train step."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from rq.parallel import sharding
from rq.training import optimizer as optim
from rq.training.train_state import TrainState


class Stage(abc.ABC):
    """Trains one model; the interface that `rq.training.loop.fit` uses.

    Attributes:
      name: name of its section in the config and of its folder in a run directory.
      config: the whole config.
      mesh: the devices.
      steps, batch_size: from its section.
      codes_per_image: number of codes made or predicted for an image; 0 for none.
      criterion: metric of `evaluate` that is lowest at the best checkpoint.
      watch: function that passes evaluation batches on; may raise to stop.
    """

    name: str
    criterion: str

    def __init__(self, config, mesh, eval_batches: Callable[[], Iterable[dict]]):
        """Makes the optimizer.

        Args:
          config: the whole config.
          mesh: the devices.
          eval_batches: function that returns the evaluation batches, from
            `rq.data.loader.in_order` with `mesh`: each process reads its own rows.
        """
        self.config, self.mesh = config, mesh
        self._open_eval_batches = eval_batches
        self.watch: Callable[[Any], Iterable[dict]] = lambda batches: batches
        self._part = config[self.name]
        self.steps, self.batch_size = self._part.steps, self._part.batch_size
        self.codes_per_image = math.prod(config.rqvae.model.code_shape)
        optimizer = self._part.optimizer
        self._schedule = optim.warmup_cosine(
            optimizer.learning_rate,
            self.steps,
            optimizer.warmup_steps,
            optimizer.min_learning_rate,
        )
        self._tx = optim.make_optimizer(optimizer, self._schedule)

    def eval_batches(self) -> Iterator[dict]:
        """Returns the evaluation batches, as `watch` passes them on."""
        return iter(self.watch(self._open_eval_batches()))

    def first_eval_batch(self) -> dict[str, np.ndarray]:
        """Returns the first evaluation batch, whole in every process."""
        batch = next(iter(self.eval_batches()))
        return sharding.to_host(sharding.shard_batch(batch, self.mesh))

    @abc.abstractmethod
    def init(self, key) -> TrainState:
        """Returns a new state; traceable, so that it is created sharded."""

    @abc.abstractmethod
    def gradients(self, state: TrainState, batch, key):
        """Returns the gradients of a batch, the state, and metrics.

        The state has updated statistics, such as the codebook's, but the same
        parameters: see `update`.
        """

    @abc.abstractmethod
    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Returns metrics on the evaluation split."""

    def without_recomputation(self) -> Stage:
        """Returns a stage whose step recomputes no activations, to count FLOPs."""
        return self

    def new_state(self, params, codebook, key, **rest) -> TrainState:
        """Returns the state before the first step; `rest`: see `TrainState.create`."""
        ema = self._part.optimizer.ema > 0
        return TrainState.create(params, codebook, self._tx, ema, key, **rest)

    @jax.named_scope("optimizer")
    def update(self, state: TrainState, grads):
        """Returns the state after the optimizer's step, and metrics of that step."""
        metrics = {
            "gradient_norm": optim.global_norm(grads),
            "learning_rate": self._schedule(state.step),
        }
        ema = self._part.optimizer.ema
        return state.apply_gradients(grads, self._tx, ema), metrics

    def train_step(self, state: TrainState, batch):
        """Returns the state after one step, and its metrics."""
        key = jax.random.fold_in(state.key, state.step)
        grads, state, metrics = optim.accumulate_gradients(
            self.gradients, state, batch, key, self._part.grad_accum_steps
        )
        state, step_metrics = self.update(state, grads)
        return state, metrics | step_metrics
