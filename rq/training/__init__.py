# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The train loop, stages, train state, optimizers, losses and checkpoints."""
