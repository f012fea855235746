# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The wheel: what is in it, and that it works without the clone."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
import yaml
from program import xla_flags

import rq
from rq.convert import saved_folder

ROOT = pathlib.Path(__file__).parent.parent
SHIPPED = ROOT / "rq/shipped"  # models


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, made from the source archive that is made from a copy of the clone."""
    base = tmp_path_factory.mktemp("build")
    made = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("rq", "configs"):
        shutil.copytree(ROOT / name, base / "clone" / name, ignore=made)
    for path in (*ROOT.glob("*.*"), ROOT / "LICENSE"):
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, base / "clone")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", base]
    done = subprocess.run(
        [*command, base / "clone"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = base.glob("*.whl")
    return path


def test_the_wheel_has_every_file_of_the_package_and_the_configs(wheel):
    """Among them modules, shipped models, what the page loads, and py.typed."""
    files = (path for path in (ROOT / "rq").rglob("*") if path.is_file())
    names = {str(path.relative_to(ROOT)) for path in files}
    expected = {name for name in names if "__pycache__" not in name}
    expected |= {f"rq/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    found = {name for name in zipfile.ZipFile(wheel).namelist() if name[:3] == "rq/"}
    assert found == expected
    assert {"rq/py.typed", "rq/shipped/digits/model.safetensors"} <= found


def text_flags(folder):
    """Returns the flags that a shipped model needs: a text, if it takes one."""
    condition = saved_folder.opened(folder).config.transformer.condition
    return ["--text=a red heart"] if "text" in condition else []


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(wheel, tmp_path):
    """Trains by the name of a config, and samples the models that come with it."""
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONPATH"
    } | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(optimize=True)}

    def run(*command):
        done = subprocess.run(
            command,
            cwd=tmp_path / "elsewhere",
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    (tmp_path / "elsewhere").mkdir()
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python, program = tmp_path / "venv/bin/python", tmp_path / "venv/bin/rq"
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[digits]")
    assert run(program, "--version").strip() == rq.__version__
    place = run(python, "-c", "import rq; print(rq.__file__)")
    assert pathlib.Path(place.strip()).is_relative_to(tmp_path / "venv")

    flags = [f"--config.data.dir={tmp_path}/data"]
    for stage in ("rqvae", "transformer"):
        flags += [f"--config.{stage}.steps=10"]
        flags += [f"--config.{stage}.optimizer.warmup_steps=0"]
    run(program, "train", "--config=digits", "--workdir=run", *flags)
    assert (tmp_path / "elsewhere/run/transformer/10").is_dir()

    for folder in sorted(path for path in SHIPPED.glob("*") if path.is_dir()):
        out = [f"--out={folder.name}.png", "--num_samples=2"]
        run(program, "sample", folder.name, *out, *text_flags(folder))
        assert (tmp_path / "elsewhere" / f"{folder.name}.png").exists()


def test_the_citation_has_what_the_format_requires():
    """The keys that version 1.2.0 of the Citation File Format requires."""
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert found["cff-version"] == "1.2.0" and found["message"]
    assert found["title"] and found["authors"] == [{"name": "The rq Authors"}]
    (paper,) = found["references"]
    assert paper["type"] == "conference-paper" and paper["year"] == 2022
    assert [author["family-names"] for author in paper["authors"]] == [
        *("Lee", "Kim", "Kim", "Cho", "Han")
    ]


def test_version_and_its_entries_in_the_changelog_and_citation_are_one():
    sections = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert sections[:2] == ["Unreleased", rq.__version__]
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert found["version"] == rq.__version__


def test_the_hooks_before_a_commit_are_programs_of_the_tests():
    """Each hook is a program that launch/test.sh runs, or ruff's formatter."""
    found = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in found["repos"] for hook in repo["hooks"]]
    script = (ROOT / "launch/test.sh").read_text()
    for hook in hooks:
        program = hook["entry"].split()[0]
        assert hook["language"] == "system" and f'/bin/{program}"' in script
