# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""What must be usable without TensorFlow."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
BENCHMARKS = [
    f"benchmarks.{p.stem}" for p in sorted((ROOT / "benchmarks").glob("*.py"))
]


@pytest.mark.parametrize(
    "module",
    [
        "rq.models",
        "rq.sampling",
        "rq.sharding",
        "rq.convert",
        "rq.workdir",
        "rq.train",
        *BENCHMARKS,
    ],
)
def test_importing_needs_no_tensorflow(module):
    code = f"import sys, {module}; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)
