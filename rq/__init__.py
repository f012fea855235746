# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Autoregressive image generation using residual quantization, in JAX and Flax."""

__version__ = "0.1.0"
