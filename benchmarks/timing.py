# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measures functions side by side, and what the device can do at most."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from rq.models.projection import quantize


def medians(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict:
    """Returns the median seconds of functions that take turns."""
    taken = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            taken[name].append(time.perf_counter() - start)
    return {name: float(np.median(seconds)) for name, seconds in taken.items()}


def bandwidth(mebibytes: int = 512, rounds: int = 5) -> float:
    """Returns bytes per second of reading weights, in matrix-vector products.

    On accelerators sixteen in turn, since one is over sooner than a program starts.
    """
    matrix = jnp.ones((mebibytes * 2**18 // 4096, 4096), jnp.float32)

    def read(matrix, vector):
        return vector + 1e-9 * (matrix @ vector).mean()

    return matrix.nbytes / _seconds(read, matrix, jnp.ones(4096), rounds)


def flop_rate(precision: str, size: int = 2048, rounds: int = 5) -> float:
    """Returns FLOP/s of large square products in a precision.

    On accelerators they are larger, of four times the side, and sixteen in turn.
    """
    size *= 1 if _repeats() == 1 else 4
    x = jax.random.normal(jax.random.key(0), (size, size))
    x = quantize(x)[0] if precision == "int8" else x.astype(precision)
    accumulator = jnp.int32 if precision == "int8" else jnp.float32

    def multiply(x, y):
        product = jnp.matmul(x, y, preferred_element_type=accumulator)
        return (product / size).astype(x.dtype)

    return 2 * size**3 / _seconds(multiply, x, x, rounds)


def _repeats() -> int:
    return 1 if jax.default_backend() == "cpu" else 16


def _seconds(step, operand, start, rounds: int) -> float:
    """Returns seconds of one `step` from `start`, of a program of several in turn."""

    @jax.jit
    def repeated(operand, x):
        return jax.lax.fori_loop(0, repeats, lambda _, x: step(operand, x), x)

    repeats = _repeats()
    jax.block_until_ready(repeated(operand, start))
    return medians({"": lambda: repeated(operand, start)}, rounds)[""] / repeats
