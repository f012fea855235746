# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Feature extractors, jobs that generate and measure samples, and reports."""
