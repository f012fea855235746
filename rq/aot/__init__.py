# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Compiles the real programs for unavailable devices, and reports their cost.

python -m rq.aot --config=imagenet:1.4B --topology=v5e:8x8
"""
