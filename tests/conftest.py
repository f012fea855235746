# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Before any test module is imported: eight simulated CPU devices, and parsed flags."""

import os
import pathlib

from program import xla_flags

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{xla_flags(8)} {os.environ.get('XLA_FLAGS', '')}".strip()

# Tests compile the same programs again and again, those that start processes above all.
CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache/jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Programs without the lines of source that they come from are lowered faster.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

import fcntl  # noqa: E402
import shutil  # noqa: E402

import pytest  # noqa: E402
from absl import flags  # noqa: E402
from program import TINY, run  # noqa: E402

# Grain reads flags, which only a program's start parses.
flags.FLAGS.mark_as_parsed()


def pytest_collection_modifyitems(items):
    """Puts tests of the trained run first: one worker trains it, none waits for it."""
    items.sort(key=lambda item: "trained" not in item.fixturenames)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder of this run of the tests, the same one for all of its processes."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def made_once(folder, make):
    """Returns `folder`, in which `make` wrote; the first process that asks runs it."""
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder.with_suffix(".done")
        if not done.exists():
            make()
            done.touch()
    return folder


@pytest.fixture(scope="session")
def data_dir(shared_folder):
    """The built-in data sets, each prepared when a test asks for it."""
    return shared_folder / "data"


@pytest.fixture(scope="session")
def trained(shared_folder, data_dir):
    """A workdir in which everything was trained, undisturbed; not to change."""
    workdir = shared_folder / "trained"
    return made_once(
        workdir, lambda: run(TINY, f"--workdir={workdir}", data_dir=data_dir)
    )


@pytest.fixture(scope="session")
def with_features(shared_folder, trained, data_dir):
    """A copy of it, in which a network of the digits' own classes was trained too."""
    workdir = shared_folder / "with_features"

    def make():
        shutil.copytree(trained, workdir, dirs_exist_ok=True)
        features = "--config.stages=features"
        run(TINY, features, f"--workdir={workdir}", data_dir=data_dir)

    return made_once(workdir, make)
