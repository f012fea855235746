# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""What has parameters, and its pure mathematics."""

from rq.models.rqvae import RQVAE
from rq.models.transformer import RQTransformer, StackConfig

__all__ = ["RQVAE", "RQTransformer", "StackConfig"]
