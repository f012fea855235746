# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Before any test module is imported: eight simulated CPU devices, and parsed flags."""

import os
import pathlib

DEVICES = "--xla_force_host_platform_device_count"

os.environ["JAX_PLATFORMS"] = "cpu"
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8".strip()

# Tests compile the same programs again and again, those that start processes above all.
CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache/jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

from absl import flags  # noqa: E402

# Grain reads flags, which only a program's start parses.
flags.FLAGS.mark_as_parsed()
