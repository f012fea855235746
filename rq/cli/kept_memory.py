# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Keeps memory that training on a CPU frees, instead of returning it to the system.

XLA's CPU backend allocates the arrays of each step anew. The C library (glibc) returns
blocks of their size to the system, which clears every page when it is next touched:
300,000 page faults, a tenth of the time, in a step of a transformer of 90M parameters.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import sys

import jax

# Settings of `mallopt`, and the environment variables that set the same. All threads
# share one heap, as those of other threads cannot hold large blocks.
_SETTINGS = {
    "MALLOC_ARENA_MAX": (-8, 1),
    "MALLOC_MMAP_MAX_": (-4, 0),
    "MALLOC_TRIM_THRESHOLD_": (-1, -1),
}


def enable() -> bool:
    """Keeps freed memory from now on; returns whether it does.

    Call it before anything uses a device. It does nothing where training is not on a
    CPU, where the C library is another, or where its environment variables are set.
    """
    set_by_user = "GLIBC_TUNABLES" in os.environ or not _SETTINGS.keys().isdisjoint(
        os.environ
    )
    if sys.platform != "linux" or set_by_user or not _is_on_cpu():
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all(library.mallopt(*setting) for setting in _SETTINGS.values())


def _is_on_cpu() -> bool:
    """Returns whether JAX will use the CPU, which it says itself only when it does."""
    if wanted := jax.config.values["jax_platforms"]:
        return wanted == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and importlib.util.find_spec("libtpu") is None
