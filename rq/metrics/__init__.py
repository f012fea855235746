# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Computes metrics from arrays, without networks or image files."""
