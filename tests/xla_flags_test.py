# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests the guard against wrong sums of jaxlib 0.10.2 on CPU."""

import json
import os
import subprocess
import sys

import jaxlib
import pytest

from rq import xla_flags

# https://github.com/jax-ml/jax/issues/39103, and neighbours of it: more rows, other
# widths.
REPRODUCER = """
import rq
import json, jax, jax.numpy as jnp, numpy as np

def squares(matrix):
    return lambda row: jnp.sum((matrix @ row) ** 2)

wrong = {}
for rows, width in ((32_768, 3), (32_769, 3), (70_001, 3), (32_769, 8), (50_000, 33)):
    x = np.random.default_rng(rows).integers(-4, 5, (rows, width)).astype(np.float32)
    f = squares(jnp.eye(width))
    found = jax.jit(jax.vmap(f))(x)
    expected = (x.astype(np.float64) ** 2).sum(1)
    wrong[f"{rows} x {width}"] = int(np.sum(np.abs(found - expected) > 1e-3))
print(json.dumps(wrong))
"""


def run(code, **environment):
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"} | environment
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert not result.returncode, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_sums_are_right_once_rq_is_imported():
    assert not any(run(REPRODUCER).values())


@pytest.mark.skipif(jaxlib.__version__ != xla_flags.AFFECTED, reason="it is mended")
def test_the_reproducer_shows_the_fault_where_the_guard_is_off():
    assert run(REPRODUCER.replace("import rq", ""))["32769 x 3"]


@pytest.mark.parametrize(
    "version, before, after",
    [
        ("0.10.2", None, "FLAG=individual_dot"),
        ("0.10.2", "--a=1", "--a=1 FLAG=individual_dot"),
        ("0.10.2", "FLAG=-reduce --a=1", "FLAG=-reduce --a=1"),
        ("0.10.2", "/etc/xla_flags.txt", "/etc/xla_flags.txt"),
        ("0.10.1", "--a=1", "--a=1"),
        ("0.11.0", None, None),
        ("0.10.20", None, None),
    ],
)
def test_only_the_affected_version_is_given_the_flag(
    monkeypatch, version, before, after
):
    monkeypatch.setattr(jaxlib, "__version__", version)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if before is not None:
        monkeypatch.setenv("XLA_FLAGS", before.replace("FLAG", xla_flags.FLAG))
    xla_flags.avoid_wrong_cpu_sums()
    expected = after and after.replace("FLAG", xla_flags.FLAG)
    assert os.environ.get("XLA_FLAGS") == expected
