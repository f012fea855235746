# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""What training carries from step to step, of either stage."""

from __future__ import annotations

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from rq.training.optimizer import ema_update


@flax.struct.dataclass
class TrainState:
    """Everything that a checkpoint must hold, but for the data's position.

    Attributes:
      step: int32 scalar, updates taken.
      params: trained by the optimizer.
      codebook: the `codebook` collection; stage 2 carries stage 1's, frozen.
      opt_state: of the optimizer.
      ema: moving average of the parameters; {} where it is off.
      key: typed random key; step n uses `fold_in(key, n)`.
      adversary: of stage 1 with a discriminator, see
        `rq.training.stages.adversary`; or {}.
      frozen: parameters that losses need and nothing changes; {} where there are none.
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
    def create(
        cls, params, codebook, tx, ema: bool, key, adversary=None, frozen=None
    ) -> TrainState:
        """The state before the first step."""
        # The average must be a copy: one buffer cannot be donated twice.
        average = jax.tree.map(jnp.copy, params) if ema else {}
        step = jnp.zeros((), jnp.int32)
        opt_state = tx.init(params)
        rest = (adversary or {}, frozen or {})
        return cls(step, params, codebook, opt_state, average, key, *rest)

    def apply_gradients(self, grads, tx, ema: float) -> TrainState:
        """One update, of the moving average too where `ema` (its decay) is above 0."""
        updates, opt_state = tx.update(grads, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        average = self.ema
        if ema > 0:
            average = ema_update(average, params, ema, self.step)
        return self.replace(
            step=self.step + 1,
            params=params,
            opt_state=opt_state,
            ema=average,
        )

    def model_variables(self) -> dict:
        """What to evaluate and sample with: the average where there is one."""
        params = self.ema if jax.tree.leaves(self.ema) else self.params
        return {"params": params, "codebook": self.codebook}
