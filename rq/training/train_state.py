# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The state of a training, for all stages."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from rq.training.optimizer import ema_update


@flax.struct.dataclass
class TrainState:
    """Holds all that a checkpoint stores, except the position in the data.

    Attributes:
      step: int32 scalar, number of updates.
      params: parameters that the optimizer trains.
      codebook: the `codebook` collection; in stage 2 that of stage 1, frozen.
      opt_state: state of the optimizer.
      ema: moving average of the parameters, or {} if it is off.
      key: typed random key; step n uses `fold_in(key, n)`.
      adversary: state of stage 1's discriminator, see `rq.training.stages.adversary`,
        or {}.
      frozen: fixed parameters that losses need, or {}.
    """

    step: jax.Array
    params: Any
    codebook: Any
    opt_state: Any
    ema: Any
    key: jax.Array
    adversary: Any = flax.struct.field(default_factory=dict)
    frozen: Any = flax.struct.field(default_factory=dict)

    @classmethod
    def create(cls, params, codebook, tx, ema: bool, key, **rest) -> TrainState:
        """Returns the state before the first step; `rest`: `adversary`, `frozen`."""
        # The average must be a copy: one buffer cannot be donated twice.
        average = jax.tree.map(jnp.copy, params) if ema else {}
        step = jnp.zeros((), jnp.int32)
        return cls(step, params, codebook, tx.init(params), average, key, **rest)

    def apply_gradients(self, grads, tx, ema: float) -> TrainState:
        """Returns the state after an update; `ema` is the average's decay, 0: off."""
        updates, opt_state = tx.update(grads, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        average = self.ema
        if ema > 0:
            average = ema_update(average, params, ema, self.step)
        return dataclasses.replace(
            self,
            step=self.step + 1,
            params=params,
            opt_state=opt_state,
            ema=average,
        )

    def model_variables(self) -> dict:
        """Returns the variables to evaluate and sample with: the average, if any."""
        params = self.ema if jax.tree.leaves(self.ema) else self.params
        return {"params": params, "codebook": self.codebook}
