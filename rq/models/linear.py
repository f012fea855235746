# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""A dense layer with gradients that are fast on CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rq.models import channel_sums
from rq.models.activations import identity


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, kernel: jax.Array, activation=identity) -> jax.Array:
    """Returns `activation(x) @ kernel` of `[..., M]` and `[M, N]`.

    The backward pass keeps x alone, and computes its activation again: cheaper than to
    write and read it, as scanned layers do with all that is kept.

    XLA's CPU backend transposes the first operand of the kernel's gradient in memory,
    and computes again what that array is made from, element by element. Automatic
    differentiation puts the gradient of the product first; here it is the narrower of
    gradient and x, so that neither an MLP's hidden layer nor the gradient of its
    activation is transposed, and x only once for queries, keys and values.
    """
    return jnp.dot(activation(x), kernel)


def _product_backward(activation, kept, grad):
    x, kernel = kept
    x, pull_back = jax.vjp(activation, x)
    at_x = jax.lax.dot_general(grad, kernel, (((grad.ndim - 1,), (1,)), ((), ())))
    leading = tuple(range(x.ndim - 1))
    contracted = ((leading, leading), ((), ()))
    if x.shape[-1] <= grad.shape[-1]:
        at_kernel = jax.lax.dot_general(x, grad, contracted)
    else:
        at_kernel = jax.lax.dot_general(grad, x, contracted)
        # Otherwise XLA exchanges the operands to save the transposition.
        at_kernel = jax.lax.optimization_barrier(at_kernel).T
    return *pull_back(at_x), at_kernel


product.defvjp(
    lambda x, kernel, activation: (product(x, kernel, activation), (x, kernel)),
    _product_backward,
)


class Linear(nn.Module):
    """`nn.Dense`, its parameters and their names included; see `channel_sums`.

    Attributes:
      features: N.
      use_bias: whether it has a bias.
      dtype: of the product.
      kernel_init, bias_init: initialisers.
      activation: of the inputs.
    """

    features: int
    use_bias: bool
    dtype: Any
    kernel_init: nn.initializers.Initializer
    bias_init: nn.initializers.Initializer
    activation: Callable[[jax.Array], jax.Array] = identity

    @nn.compact
    def __call__(self, x):
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y = product(x.astype(self.dtype), kernel.astype(self.dtype), self.activation)
        if not self.use_bias:
            return y
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        return channel_sums.add_bias(y, bias.astype(self.dtype))
