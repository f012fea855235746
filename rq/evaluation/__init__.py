# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measures of images and of codes: arrays in, numbers out."""
