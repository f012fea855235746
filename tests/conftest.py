# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Before any test module is imported: eight simulated CPU devices, and parsed flags."""

import os

DEVICES = "--xla_force_host_platform_device_count"

os.environ["JAX_PLATFORMS"] = "cpu"
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8".strip()

from absl import flags  # noqa: E402

# Grain reads flags, which only a program's start parses.
flags.FLAGS.mark_as_parsed()
