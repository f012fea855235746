# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Commands: one module each, with its own flags; no computation."""
