# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Formulas: arrays in, numbers out; no networks, no files."""
