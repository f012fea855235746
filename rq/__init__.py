# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Autoregressive image generation using residual quantization, in JAX and Flax.

    import rq
    model = rq.load("runs/digits")
    images = model.sample(classes=[3, 7], num_samples=16, seed=0, top_p=0.95)

See `rq.library`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rq.xla_flags import avoid_wrong_cpu_sums

if TYPE_CHECKING:
    from rq.library import Model, load

__all__ = ["Model", "load"]
__version__ = "0.1.0"

avoid_wrong_cpu_sums()


def __getattr__(name: str):
    """Imports the library, with JAX, when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'rq' has no attribute {name!r}")
    from rq import library

    return getattr(library, name)
