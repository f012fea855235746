# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Brings in one's own images: folders, tar shards and tables become a TFDS set."""
