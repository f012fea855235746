# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sampling codes and images; likelihoods; completion."""

from rq.config import SamplingConfig
from rq.sampling.filters import make_filters
from rq.sampling.guidance import make_guidance
from rq.sampling.program import sample
from rq.sampling.sampler import Sampler, Samples

__all__ = [
    "Sampler",
    "Samples",
    "SamplingConfig",
    "make_filters",
    "make_guidance",
    "sample",
]
