# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Training on a CPU keeps the memory that it frees."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from rq.cli import kept_memory
enabled = kept_memory.enable()
import jax, jax.numpy as jnp
step = jax.jit(lambda x: (x + 1, x * 2))  # arrays of 64 MB
x = jnp.ones((4096, 4096))
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
found = []
for _ in range(60):  # the heap still grows in a few of them
    before = faults()
    jax.block_until_ready(step(x))
    found.append(faults() - before)
print(enabled, sorted(found)[30])
"""


def run(**variables) -> tuple[bool, int]:
    """Returns whether memory is kept, and the median page faults of a step."""
    dropped = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    env = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    command = [sys.executable, "-c", SCRIPT]
    found = subprocess.run(
        command, env=env | variables, capture_output=True, text=True, check=True
    )
    enabled, faults = found.stdout.split()
    return enabled == "True", int(faults)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has the settings")
def test_a_step_touches_no_new_memory():
    enabled, faults = run(JAX_PLATFORMS="cpu")
    assert enabled
    assert faults < 1000
    # Also shows that the step above would have: 64 MB are 16,384 pages.
    enabled, faults = run(JAX_PLATFORMS="cpu", MALLOC_ARENA_MAX="8")
    assert not enabled
    assert faults > 4000


def test_an_accelerator_leaves_the_settings_alone():
    code = (
        "import jax; jax.config.update('jax_platforms', 'tpu,cpu');"
        "from rq.cli import kept_memory; print(kept_memory.enable())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "False"
