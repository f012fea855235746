# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The paper's models in plain eager PyTorch, to compare speed with."""
