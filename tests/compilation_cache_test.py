# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests the cache of compiled programs: where it is, its faults, and equal results."""

import os
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest
import together
from program import ROOT, xla_flags

from rq.cli import compilation_cache

# Trains a little model of both stages' kinds of layers, and prints a hash of the result
# and how many programs were loaded.
PROGRAM = """
import hashlib, sys
from rq.cli import compilation_cache
from jax import monitoring
events = []
monitoring.register_event_listener(lambda name, **_: events.append(name))
folder = compilation_cache.enable()
import jax, jax.numpy as jnp, numpy as np

def loss(params, x):
    y = jax.lax.conv_general_dilated(x, params["conv"], (1, 1), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = jax.nn.softmax(y.reshape(8, 64, 16) @ params["dense"], axis=-1)
    return -jnp.mean(jnp.log(y[..., 0]))

@jax.jit
def step(params, key):
    x = jax.random.normal(key, (8, 8, 8, 3))
    gradients = jax.grad(loss)(params, x)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)

rng = np.random.default_rng(0)
params = {"conv": rng.normal(size=(3, 3, 3, 16)).astype(np.float32),
          "dense": rng.normal(size=(16, 16)).astype(np.float32)}
for n in range(5):
    params = step(params, jax.random.fold_in(jax.random.key(0), n))
data = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(params))
hits = sum(name.endswith("/cache_hits") for name in events)
print(folder, hits, hashlib.sha256(data).hexdigest())
"""
NAMES = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


def run(home, **environment):
    """Runs it; returns the folder, the number of programs loaded, a hash, stderr."""
    clean = {name: x for name, x in os.environ.items() if name not in NAMES}
    flags = xla_flags(optimize=True)
    clean |= {"XDG_CACHE_HOME": str(home), "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    clean[NAMES[1]] = "0"  # keeps all programs
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    folder, hits, digest = result.stdout.split()
    return folder, int(hits), digest, result.stderr


def entries(folder):
    return sorted(pathlib.Path(folder).glob("jit_step-*-cache"))


@pytest.mark.slow
def test_results_are_the_same_bits_with_a_new_a_used_a_damaged_and_no_cache(tmp_path):
    folder, new, digest, _ = run(tmp_path)
    assert folder.startswith(f"{tmp_path}/rq/programs/")
    _, used, *_ = found = run(tmp_path)
    assert found[:3] == (folder, used, digest) and used > new
    (entry,) = entries(folder)
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2])  # a write that was cut short
    assert run(tmp_path)[:3] == (folder, used - 1, digest)
    assert run(tmp_path)[:3] == (folder, used, digest)
    off = run(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")
    assert off[:3] == ("None", 0, digest)
    assert run(tmp_path, JAX_COMPILATION_CACHE_DIR="")[:3] == ("None", 0, digest)
    named = str(tmp_path / "named")
    found = run(tmp_path / "unused", JAX_COMPILATION_CACHE_DIR=named)
    assert found[:3] == (named, new, digest)
    assert entries(named) and not (tmp_path / "unused").exists()


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path):
    (tmp_path / "rq").write_text("a file in its place")
    folder, hits, _, printed = run(tmp_path)
    assert (folder, hits) == ("None", 0)
    assert printed.count("no cache of compiled programs") == 1, printed


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """Restores JAX's settings, and names a folder by default."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = [name.lower() for name in NAMES]
    before = {name: jax.config.values[name] for name in names}
    jax.config.update(compilation_cache.FOLDER, None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_a_full_disk_is_not_filled_further(settings, monkeypatch, caplog):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert compilation_cache.enable() is None
    assert "256 MiB are free" in caplog.text
    assert jax.config.values[compilation_cache.FOLDER] is None


def test_the_least_recently_used_programs_leave_a_default_folder(settings, monkeypatch):
    monkeypatch.setattr(compilation_cache, "MAX_SIZE", 250)
    folder = compilation_cache.default_folder()
    folder.mkdir(parents=True)
    (folder / compilation_cache.CHECKED).touch()
    ages = {"used": 10, "unused": 3000, "old": 2000, "new": 1000}
    now = (folder / compilation_cache.CHECKED).stat().st_mtime
    for name, age in ages.items():
        (folder / name).write_bytes(bytes(100))
        os.utime(folder / name, (now - age, now - (3000 if name == "used" else age)))
    assert compilation_cache.enable() == str(folder)
    assert {x.name for x in folder.iterdir()} == {"used", "new", ".checked"}
    assert jax.config.values[compilation_cache.SECONDS] != 1


def test_machines_that_differ_have_folders_of_their_own(monkeypatch):
    here = compilation_cache.default_folder()
    assert here == compilation_cache.default_folder()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(77)))
    assert here != compilation_cache.default_folder()


@pytest.mark.parametrize("shared", [pytest.param(True, marks=pytest.mark.slow), False])
def test_processes_use_a_folder_only_if_they_share_it(tmp_path, shared):
    environment = {k: x for k, x in os.environ.items() if k not in NAMES}
    environment |= {"XLA_FLAGS": xla_flags(2), "PYTHONPATH": str(ROOT)}
    folders = [str(tmp_path / ("same" if shared else str(i))) for i in range(2)]
    found = together.ends(together.start(2, "caches", *folders, env=environment))
    assert [status for status, _ in found] == [0, 0], found
    for (_, output), folder in zip(found, folders, strict=True):
        assert f"cache: {folder if shared else None}\n" in output
        assert ("do not share" in output) == (not shared)
