# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The paper's configs at their real size: traced, divided over eight devices, compiled.

Nothing is allocated but the codebook; no step is run.
"""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import pytest

from rq import sharding, train
from rq.config import rqvae_model
from rq.stages import RQVAEStage, TransformerStage

ROOT = pathlib.Path(__file__).parent.parent
STAGE_1 = ["imagenet", "ffhq", "lsun:church"]
STAGE_2 = [
    "imagenet:480M",
    "imagenet:821M",
    "imagenet:1.4B",
    "imagenet:3.8B",
    "ffhq",
    "lsun:church",
    "lsun:cat",
    "lsun:bedroom",
    "cc3m",
]


def load(name):
    file, _, variant = name.partition(":")
    path = ROOT / f"configs/{file}.py"
    spec = importlib.util.spec_from_file_location(f"{file}_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant) if variant else module.get_config()


def lower(stage, batch, mesh):
    """The train step of a stage for abstract inputs, on the mesh."""
    boxed = jax.eval_shape(stage.init, jax.random.key(0))
    shardings = sharding.state_shardings(boxed, mesh)
    place = sharding.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct((stage.batch_size, *shape), dtype, sharding=place)
        for name, (shape, dtype) in batch.items()
    }
    step = train.compiled(stage.train_step, shardings, mesh)
    with sharding.context(mesh):
        lowered = step.lower(sharding.abstract_state(boxed, mesh), batch)
    assert "sharding_constraint" in lowered.as_text() or stage.name == "rqvae"
    return lowered


def lower_stage_1(config, mesh):
    stage = RQVAEStage(config, mesh, lambda: iter([]))
    side, channels = config.data.resolution, config.data.channels
    return lower(stage, {"image": ((side, side, channels), jnp.uint8)}, mesh)


def lower_stage_2(config, mesh):
    rqvae = rqvae_model(config)
    shape = (1, rqvae.resolution, rqvae.resolution, rqvae.image_channels)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    abstract = jax.eval_shape(rqvae.init, jax.random.key(0), images)["codebook"]
    codebook = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)
    variables = {"params": {}, "codebook": codebook}
    stage = TransformerStage(config, mesh, lambda: iter([]), variables)
    grid = rqvae.code_shape[:2]
    batch = {
        "codes": (rqvae.code_shape, jnp.int32),
        "features": ((*grid, rqvae.code_dim), jnp.float32),
        "label": ((), jnp.int32),
        "text": ((config.transformer.text.length,), jnp.int32),
    }
    return lower(stage, batch, mesh)


@pytest.mark.parametrize("name", STAGE_1)
def test_stage_one_traces_and_shards(name):
    assert lower_stage_1(load(name), sharding.make_mesh(2, 4, 1)) is not None


@pytest.mark.parametrize("name", STAGE_2)
def test_stage_two_traces_and_shards(name):
    assert lower_stage_2(load(name), sharding.make_mesh(1, 4, 2)) is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet:1.4B", "imagenet:3.8B", "cc3m"])
def test_stage_two_compiles(name):
    compiled = lower_stage_2(load(name), sharding.make_mesh(1, 4, 2)).compile()
    memory = compiled.memory_analysis()
    # The state is divided: an eighth of it, and not the whole, is on each device.
    assert memory.argument_size_in_bytes > 0
    state = 3 * 4 * load(name).transformer.model.width ** 2 * 12
    assert memory.argument_size_in_bytes < state * 48 / 4


@pytest.mark.slow
def test_stage_one_compiles():
    lower_stage_1(load("imagenet"), sharding.make_mesh(2, 4, 1)).compile()
