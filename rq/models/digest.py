# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Hashes that identify trained weights."""

from __future__ import annotations

import hashlib

import jax
import numpy as np


def digest(tree, about: str = "") -> str:
    """Returns the SHA-256 of a text and of all arrays of a tree, in their order."""
    found = hashlib.sha256(about.encode())
    for leaf in jax.tree.leaves(tree):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()
