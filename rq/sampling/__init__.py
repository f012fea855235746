# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sampling codes and images; likelihoods; completion."""

from rq.sampling.program import Filters, make_filters, make_guidance, sample

__all__ = ["Filters", "make_filters", "make_guidance", "sample"]
