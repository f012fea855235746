# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""A dense layer with a gradient of its bias that is fast on CPU."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from rq.models import channel_sums


class Linear(nn.Module):
    """`nn.Dense`, its parameters and their names included; see `channel_sums`."""

    features: int
    use_bias: bool
    dtype: Any
    kernel_init: nn.initializers.Initializer
    bias_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x):
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y = jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype))
        if not self.use_bias:
            return y
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        return channel_sums.add_bias(y, bias.astype(self.dtype))
