# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Counts the FLOPs of traced programs; knows the peak FLOP/s of devices."""

from __future__ import annotations

import math

from jax.interpreters import partial_eval

# Published dense bfloat16 FLOP/s by prefix of `device_kind`.
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(kind: str) -> float | None:
    """Returns the peak bfloat16 FLOP/s of a `device_kind`; None if unknown."""
    found = [name for name in PEAKS if kind.startswith(name)]
    return PEAKS[max(found, key=len)] if found else None


def program_flops(jaxpr) -> float:
    """Returns the FLOPs of all matrix products and convolutions of a traced program.

    A multiplication and an addition count as two. The total is over all devices. It
    includes recomputation (remat) and excludes dead code. It counts all iterations of
    scans, one iteration of loops of unknown length, and the most expensive branch of
    conditionals. XLA's own cost analysis counts the body of any loop once.

    Args:
      jaxpr: `jax.jit(f).trace(...).jaxpr`.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    live, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _flops(live)


def _flops(jaxpr) -> float:
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _dot(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "scan":
            total += params["length"] * _flops(params["jaxpr"])
        elif name == "cond":
            total += max(_flops(branch) for branch in params["branches"])
        else:
            total += sum(_flops(inner) for inner in _inner(params))
    return total


def _inner(params):
    """Yields the jaxprs among an equation's parameters."""
    for value in params.values():
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if hasattr(getattr(one, "jaxpr", one), "eqns"):
                yield one


def _dot(equation) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval, equation.outvars[0].aval
    return 2 * out.size * math.prod(left.shape[axis] for axis in contracted)


def _convolution(equation) -> float:
    kernel, out = equation.invars[1].aval, equation.outvars[0].aval
    out_axis = equation.params["dimension_numbers"].rhs_spec[0]
    # Gradients of strided convolutions put zeros between pixels, which do not count.
    zeros = math.prod(equation.params["lhs_dilation"])
    return 2 * out.size * kernel.size / kernel.shape[out_axis] / zeros
