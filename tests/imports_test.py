# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Which modules import which, and what must be usable without TensorFlow."""

import importlib.util
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
BENCHMARKS = sorted(p.stem for p in (ROOT / "benchmarks").glob("*.py"))
MODULES = ("models", "sampling", "parallel.sharding", "convert", "training.loop")


IMPORTS = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    assert "tensorflow" not in sys.modules, name
"""


@pytest.mark.parametrize(
    "modules, folder",
    [
        ([f"rq.{name}" for name in MODULES], ROOT),
        pytest.param(BENCHMARKS, ROOT / "benchmarks", marks=pytest.mark.slow),
    ],
    ids=["rq", "benchmarks"],
)
def test_importing_needs_no_tensorflow(modules, folder):
    command = [sys.executable, "-c", IMPORTS, *modules]
    subprocess.run(command, check=True, cwd=folder, timeout=120)


WITHOUT = """
import importlib, sys
importlib.import_module(sys.argv[1])
print(*(set(sys.argv[2:]) & set(sys.modules)))
"""
DATA = ("grain", "tensorflow_datasets", "tensorflow", "clu", "matplotlib")


@pytest.mark.parametrize(
    "module, absent",
    [("rq", ("jax",)), ("rq.cli.program", ("jax", "flax")), ("rq.cli.sample", DATA)],
)
def test_commands_import_only_what_they_need(module, absent):
    command = [sys.executable, "-c", WITHOUT, module, *absent]
    found = subprocess.run(
        command, check=True, cwd=ROOT, timeout=120, capture_output=True, text=True
    )
    assert not found.stdout.split()


LINT = "from importlinter.cli import lint_imports_command as lint; lint()"


def lint_imports(folder):
    """Runs the contracts of a checkout's pyproject.toml on its `rq`."""
    return subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache", "--no-logo"],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "module, line, contract",
    [
        (None, "", ""),
        ("rq/models/stack.py", "import rq.training.loop", "what stands below it"),
        ("rq/training/loop.py", "from rq.aot import programs", "neither aot nor"),
        ("rq/config/schema.py", "def f():\n    import rq.cli.train", "stands below it"),
        ("rq/metrics/moments.py", "from rq.models import RQVAE", "without networks"),
        ("rq/sampling/program.py", "import clu", "no TensorFlow"),
        ("rq/data/augment.py", "from rq.data import loader", "No cycles"),
        ("rq/drawer.py", "", "stands below it"),
    ],
)
def test_the_contract_of_layers_passes_and_fails_where_it_is_broken(
    tmp_path, module, line, contract
):
    shutil.copytree(ROOT / "rq", tmp_path / "rq")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    if module is not None:
        with (tmp_path / module).open("a") as file:
            file.write(f"\n{line}\n")
    found = lint_imports(tmp_path)
    assert (found.returncode == 0) == (module is None), found.stdout + found.stderr
    broken = [x for x in found.stdout.splitlines() if " BROKEN" in x]
    assert module is None or any(contract in x for x in broken), found.stdout


def test_the_table_of_packages_is_that_of_the_contract():
    path = ROOT / "launch/layers.py"
    spec = importlib.util.spec_from_file_location("layers", path)
    layers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(layers)
    text = layers.DOCUMENT.read_text()
    assert layers.START in text and layers.updated(text) == text, "run launch/layers.py"
