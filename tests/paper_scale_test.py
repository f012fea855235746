# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The paper's configs at their real size: traced, divided over eight devices, compiled.

Nothing is allocated but codebook and LPIPS; no step is run.
"""

import importlib.util
import pathlib

import pytest

from rq.aot import programs
from rq.parallel import sharding

ROOT = pathlib.Path(__file__).parent.parent


def slow(*values):
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


# Slow are those that differ from the others by numbers alone.
STAGE_1 = ["imagenet", *slow("ffhq", "lsun:church")]
STAGE_2 = [
    "imagenet:1.4B",
    "ffhq",
    "cc3m",
    *slow("imagenet:480M", "imagenet:821M", "imagenet:3.8B"),
    *slow("lsun:church", "lsun:cat", "lsun:bedroom"),
]


def load(name):
    file, _, variant = name.partition(":")
    path = ROOT / f"configs/{file}.py"
    spec = importlib.util.spec_from_file_location(f"{file}_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant) if variant else module.get_config()


def lower(name, stage, mesh):
    """The train step of a config's stage for abstract inputs, on the mesh."""
    traced = programs.train_step(load(name), stage, mesh)
    with sharding.context(mesh):
        lowered = traced.lower()
    assert stage == "rqvae" or "sharding_constraint" in lowered.as_text()
    return lowered


@pytest.mark.parametrize("name", STAGE_1)
def test_stage_one_traces_and_shards(name):
    assert lower(name, "rqvae", sharding.make_mesh(2, 4, 1)) is not None


@pytest.mark.parametrize("name", STAGE_2)
def test_stage_two_traces_and_shards(name):
    assert lower(name, "transformer", sharding.make_mesh(1, 4, 2)) is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet:1.4B", "imagenet:3.8B", "cc3m"])
def test_stage_two_compiles(name):
    compiled = lower(name, "transformer", sharding.make_mesh(1, 4, 2)).compile()
    memory = compiled.memory_analysis()
    # The state is divided: an eighth of it, and not the whole, is on each device.
    assert memory.argument_size_in_bytes > 0
    state = 3 * 4 * load(name).transformer.model.width ** 2 * 12
    assert memory.argument_size_in_bytes < state * 48 / 4


@pytest.mark.slow
def test_stage_one_compiles():
    lower("imagenet", "rqvae", sharding.make_mesh(2, 4, 1)).compile()
