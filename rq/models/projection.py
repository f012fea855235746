# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Dense layers for decoding: weights stored output-major, in a precision of choice.

Decoding multiplies few rows by many weights, so its speed is that of reading weights.
Output-major, each output's weights are contiguous, which CPUs read fastest, and int8
weights have one scale for each.

Legend: R rows, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rq.models.activations import identity
from rq.models.row_sums import largest

PRECISIONS = ("float32", "bfloat16", "int8")
_INT8 = 127  # symmetric: -128 is not used


def quantize(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns int8 values and float32 scales `[...]` of `[..., I]`, one for each row.

    The largest magnitude of a row becomes 127; a row of zeros has scale 1.
    """
    x = x.astype(jnp.float32)
    top = largest(jnp.abs(x))
    scale = jnp.where(top > 0, top / _INT8, 1)
    return jnp.round(x / scale).astype(jnp.int8), scale[..., 0]


def output_major(kernel: jax.Array, precision: str) -> dict[str, jax.Array]:
    """Returns the parameters of a `Projection` for a kernel `[..., I, O]`.

    They are 'weight' `[..., O, I]` in that precision, and for int8 'scale' `[..., O]`.
    """
    weight = jnp.swapaxes(kernel, -1, -2)
    if precision != "int8":
        return {"weight": weight.astype(precision)}
    return dict(zip(("weight", "scale"), quantize(weight), strict=True))


def _dot(x_RI, weight):
    accumulator = jnp.int32 if x_RI.dtype == jnp.int8 else jnp.float32
    contracted = (((1,), (weight.ndim - 1,)), ((), ()))
    return jax.lax.dot_general(
        x_RI, weight, contracted, preferred_element_type=accumulator
    )


def _dot_on_cpu(x_RI, weight):
    # With several axes of outputs XLA copies the weights in every product.
    weight_OI = weight.reshape(-1, weight.shape[-1])
    # It multiplies one row of anything but float32 in a scalar loop.
    if len(x_RI) == 1 and x_RI.dtype != jnp.float32:
        y = _dot(jnp.tile(x_RI, (2, 1)), weight_OI)[:1]
    else:
        y = _dot(x_RI, weight_OI)
    return y.reshape(-1, *weight.shape[:-1])


def product(x: jax.Array, weight: jax.Array, scale: jax.Array | None = None):
    """Returns x times transposed weights, in float32.

    Args:
      x: `[..., I]`, in the dtype of float weights; for int8 weights any float, which is
        quantized row by row.
      weight: `[*O, I]`, any number of output axes.
      scale: `[*O]` of int8 weights.

    Returns:
      float32 `[..., *O]`.
    """
    rows = x.reshape(-1, x.shape[-1])
    if scale is not None:
        rows, row_scale = quantize(rows)
    y = jax.lax.platform_dependent(rows, weight, cpu=_dot_on_cpu, default=_dot)
    if scale is not None:
        row_scale = row_scale.reshape(-1, *(1,) * scale.ndim)
        y = y.astype(jnp.float32) * (row_scale * scale)
    return y.reshape(*x.shape[:-1], *y.shape[1:])


class Projection(nn.Module):
    """Applies a dense layer with output-major weights.

    Attributes:
      features: output axes O, such as (3, N, F).
      axes: logical names of the weight's axes `[*O, I]`.
      precision: of the weights, one of `PRECISIONS`.
      dtype: of the output.
      use_bias: whether it adds a bias `[*O]`.
      activation: of the inputs.
    """

    features: tuple[int, ...]
    axes: tuple[str | None, ...]
    precision: str
    dtype: Any
    use_bias: bool = True
    activation: Callable[[jax.Array], jax.Array] = identity

    @nn.compact
    def __call__(self, x):
        def parameter(name, shape, dtype):
            init = nn.with_logical_partitioning(
                nn.initializers.zeros, self.axes[: len(shape)]
            )
            return self.param(name, init, shape, dtype)

        shape, scale = (*self.features, x.shape[-1]), None
        weight = parameter("weight", shape, jnp.dtype(self.precision))
        if self.precision == "int8":
            scale = parameter("scale", shape[:-1], jnp.float32)
        # Rounded as `nn.Dense` does, before the bias is added.
        x = self.activation(x.astype(self.dtype))
        y = product(x, weight, scale).astype(self.dtype)
        if self.use_bias:
            y += parameter("bias", shape[:-1], jnp.dtype(self.dtype))
        return y
