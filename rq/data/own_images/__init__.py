# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Converts one's own images (folders, tar shards, tables) to a TFDS data set."""
