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
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import shutil  # noqa: E402

import pytest  # noqa: E402
from absl import flags  # noqa: E402
from program import TINY, run  # noqa: E402

# Grain reads flags, which only a program's start parses.
flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def trained(tmp_path_factory, data_dir):
    """A workdir in which everything was trained, undisturbed."""
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    run(TINY, f"--workdir={workdir}", data_dir=data_dir)
    return workdir


@pytest.fixture(scope="session")
def with_features(tmp_path_factory, trained, data_dir):
    """A copy of it, in which a network of the digits' own classes was trained too."""
    workdir = tmp_path_factory.mktemp("runs") / "with_features"
    shutil.copytree(trained, workdir)
    features = "--config.stages=features"
    run(TINY, features, f"--workdir={workdir}", data_dir=data_dir)
    return workdir
