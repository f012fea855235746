# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""What must be usable without TensorFlow."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
BENCHMARKS = sorted(p.stem for p in (ROOT / "benchmarks").glob("*.py"))
MODULES = ("models", "sampling", "parallel.sharding", "convert", "training.loop")


@pytest.mark.parametrize(
    "module, folder",
    [(f"rq.{name}", ROOT) for name in MODULES]
    + [(name, ROOT / "benchmarks") for name in BENCHMARKS],
)
def test_importing_needs_no_tensorflow(module, folder):
    code = f"import sys, {module}; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder, timeout=120)
