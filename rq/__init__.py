# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Autoregressive image generation using residual quantization, in JAX and Flax."""

from rq.xla_flags import avoid_wrong_cpu_sums

__version__ = "0.1.0"

avoid_wrong_cpu_sums()
