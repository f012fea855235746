# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The train loop, its stages and state, optimizers, losses, checkpoints."""
