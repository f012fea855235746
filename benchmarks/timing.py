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
    """Returns bytes per second of reading weights, in a matrix-vector product."""
    matrix = jnp.ones((mebibytes * 2**18 // 4096, 4096), jnp.float32)
    vector = jnp.ones(4096)
    read = jax.jit(lambda matrix, vector: matrix @ vector)
    read(matrix, vector)
    seconds = medians({"read": lambda: read(matrix, vector)}, rounds)["read"]
    return matrix.nbytes / seconds


def flop_rate(precision: str, size: int = 2048, rounds: int = 5) -> float:
    """Returns FLOP/s of a large square product in a precision."""
    x = jax.random.normal(jax.random.key(0), (size, size))
    x = quantize(x)[0] if precision == "int8" else x.astype(precision)
    accumulator = jnp.int32 if precision == "int8" else jnp.float32
    multiply = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=accumulator))
    jax.block_until_ready(multiply(x))
    seconds = medians({"multiply": lambda: multiply(x)}, rounds)["multiply"]
    return 2 * size**3 / seconds
