# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs `python -m rq.main` as a user would, for tests of the whole program."""

import importlib.metadata
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
TINY = "--config=configs/digits.py:tiny"
LIMIT = 600  # seconds, for one process
EMITTERS = "xla_cpu_use_fusion_emitters"  # an unknown flag would end the process
HAS_OLD_EMITTERS = importlib.metadata.version("jaxlib").startswith("0.10.")


def xla_flags(devices: int = 1, optimize: bool = False) -> str:
    """Simulated devices, and quick compilation: tests compile more than they run.

    Args:
      devices: that the CPU is to look like.
      optimize: a little, for programs that train: half the time to run. Otherwise LLVM
        does not optimize, and loops come from XLA's older emitters: half the time to
        compile. XLA's own passes stay as they are.
    """
    # A program is compiled by one thread, since each core runs tests of its own.
    flags = (
        f"--xla_force_host_platform_device_count={devices}"
        " --xla_cpu_parallel_codegen_split_count=1"
    )
    if optimize:
        return f"{flags} --xla_backend_optimization_level=1"
    flags += " --xla_backend_optimization_level=0"
    return f"{flags} --{EMITTERS}=false" if HAS_OLD_EMITTERS else flags


# Compiler options for programs that run many times: a tenth of the time to run for
# twice the time to compile.
OPTIMIZED: dict[str, int | bool] = {"xla_backend_optimization_level": 1}
if HAS_OLD_EMITTERS:
    OPTIMIZED[EMITTERS] = True


def start(*flags, data_dir=None):
    """Starts `python -m rq.main` on one device."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(optimize=True),
    }
    if data_dir is not None:
        flags = (*flags, f"--config.data.dir={data_dir}")
    return subprocess.Popen(
        [sys.executable, "-m", "rq.main", *flags],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*flags, data_dir=None, status=0):
    """Runs it to its end and returns what it printed."""
    process = start(*flags, data_dir=data_dir)
    try:
        output, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == status, output[-3000:]
    return output
