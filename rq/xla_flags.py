# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Keeps one faulty optimisation of jaxlib 0.10.2 off. `import rq` calls it.

On the CPU that version fuses a matrix product and the reduction after it into one
YNNPACK kernel, and returns wrong sums from 32,769 float32 rows on
(https://github.com/jax-ml/jax/issues/39103). Single products are right, and faster than
with all of YNNPACK off. Versions 0.10.1 and 0.11 return right sums; a jaxlib that does
not know the flag would end the process, so that no other version is given it.
"""

from __future__ import annotations

import os

import jaxlib

AFFECTED = "0.10.2"
FLAG = "--xla_cpu_experimental_ynn_fusion_type"


def avoid_wrong_cpu_sums() -> None:
    """Adds the flag to XLA_FLAGS, which XLA reads when its first backend starts.

    A setting of the user's own is kept, and so is XLA_FLAGS where it names a file.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    is_file = bool(flags) and not flags.startswith("-")
    if jaxlib.__version__ == AFFECTED and FLAG not in flags and not is_file:
        os.environ["XLA_FLAGS"] = f"{flags} {FLAG}=individual_dot".strip()
