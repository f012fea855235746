# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Meshes and axis rules, processes, preemption, atomic files, locks."""
