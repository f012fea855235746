# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""A dense layer with gradients that are fast on CPU."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rq.models import channel_sums


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns `x @ kernel` of `[..., M]` and `[M, N]`.

    XLA's CPU backend transposes the first operand of the kernel's gradient in memory,
    and computes again what that array is made from, element by element. Automatic
    differentiation puts the gradient of the product first; here it is the narrower of
    gradient and x, so that neither an MLP's hidden layer nor the gradient of its
    activation is transposed, and x only once for queries, keys and values.
    """
    return jnp.dot(x, kernel)


def _product_backward(kept, grad):
    x, kernel = kept
    at_x = jax.lax.dot_general(grad, kernel, (((grad.ndim - 1,), (1,)), ((), ())))
    leading = tuple(range(x.ndim - 1))
    contracted = ((leading, leading), ((), ()))
    if x.shape[-1] <= grad.shape[-1]:
        return at_x, jax.lax.dot_general(x, grad, contracted)
    return at_x, jax.lax.dot_general(grad, x, contracted).T


product.defvjp(lambda x, kernel: (product(x, kernel), (x, kernel)), _product_backward)


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
        y = product(x.astype(self.dtype), kernel.astype(self.dtype))
        if not self.use_bias:
            return y
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        return channel_sums.add_bias(y, bias.astype(self.dtype))
