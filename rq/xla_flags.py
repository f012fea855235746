# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Disables a faulty optimisation of jaxlib 0.10.2. `import rq` calls it.

On CPU that version fuses a matrix product with the reduction after it into a YNNPACK
kernel, which returns wrong sums from 32,769 float32 rows on
(https://github.com/jax-ml/jax/issues/39103). Single products are correct, and faster
than without YNNPACK. Versions 0.10.1 and 0.11 are correct. Only the affected version
gets the flag, since a jaxlib that does not know it would abort.
"""

from __future__ import annotations

import os

import jaxlib

AFFECTED = "0.10.2"
FLAG = "--xla_cpu_experimental_ynn_fusion_type"


def avoid_wrong_cpu_sums() -> None:
    """Adds the flag to XLA_FLAGS, which XLA reads when its first backend starts.

    It does not override the user's setting, nor an XLA_FLAGS that names a file.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    is_file = bool(flags) and not flags.startswith("-")
    if jaxlib.__version__ == AFFECTED and FLAG not in flags and not is_file:
        os.environ["XLA_FLAGS"] = f"{flags} {FLAG}=individual_dot".strip()
