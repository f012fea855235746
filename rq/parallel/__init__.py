# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Meshes, axis rules, processes, atomic files."""
