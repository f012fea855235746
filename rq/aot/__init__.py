# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Programs for machines that are not here: compiled ahead of time, and measured.

python -m rq.aot --config=configs/imagenet.py:1.4B --topology=v5e:8x8
"""
