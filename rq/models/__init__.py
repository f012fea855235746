# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""RQ-VAE, RQ-Transformer and other networks, with their pure functions."""

from rq.models.rqvae import RQVAE
from rq.models.stack import StackConfig
from rq.models.transformer import RQTransformer

__all__ = ["RQVAE", "RQTransformer", "StackConfig"]
