# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests the axis rules, meshes and batches, for arrays of both stages."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import meta
from jax.sharding import PartitionSpec as P

from rq.config import default
from rq.models import RQVAE, RQTransformer, StackConfig, decoding
from rq.parallel import sharding
from rq.training import optimizer

NAMES = dict(sharding.RULES)


def tiny_models():
    """Returns modules that use every axis name, and arguments of their `init`."""
    rqvae = RQVAE(
        resolution=16, image_channels=3, ch=32, ch_mult=(1, 2), num_res_blocks=1,
        attn_resolutions=(8,), z_channels=8, embed_dim=8, code_shape=(4, 4, 2),
        num_codes=(16,), decay=(0.99,),
    )  # fmt: skip
    stack = StackConfig(layers=2, heads=2)
    transformer = RQTransformer(
        code_shape=(2, 2, 2), num_codes=(16,), input_dim=8, num_conditions=3,
        condition_length=1, width=16, body=stack, head=stack,
    )  # fmt: skip
    learned = transformer.clone(
        body_from_codebook=False, head_from_codebook=False, shared_classifier=False,
        shared_token_embedding=False,
    )  # fmt: skip
    codes, codebook = jnp.zeros((8, 2, 2, 2), jnp.int32), jnp.zeros((16, 8))
    cond = jnp.zeros(8, jnp.int32)
    return {
        "rqvae": (rqvae, (jnp.zeros((8, 16, 16, 3)),)),
        "transformer": (transformer, (codes, cond, codebook)),
        "learned": (learned, (codes, cond, codebook)),
    }


MODELS = tiny_models()


def boxed(name):
    model, args = MODELS[name]
    return jax.eval_shape(model.init, jax.random.key(0), *args)


def names_of(tree):
    """Returns the axis names of the boxes in a tree."""
    is_box = lambda x: isinstance(x, meta.AxisMetadata)  # noqa: E731
    boxes = filter(is_box, jax.tree.leaves(tree, is_leaf=is_box))
    return {name for box in boxes for name in box.names} - {None}


def test_the_table_has_each_name_that_models_use_and_no_other(monkeypatch):
    used = set()

    def constraint(x, *names):
        used.update(names)
        return x

    monkeypatch.setattr(sharding, "constrain", constraint)
    for name in MODELS:
        used |= names_of(boxed(name))
    assert used - {None} == NAMES.keys()
    assert len(NAMES) == len(sharding.RULES)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_optimizer_state_are_sharded(name):
    """Each device has an eighth, plus small arrays."""
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    params = boxed(name)["params"]
    shardings = sharding.state_shardings(params, mesh)
    plain = sharding.unbox(params)
    assert jax.tree.structure(shardings) == jax.tree.structure(plain)
    whole = sum(leaf.size for leaf in jax.tree.leaves(plain))
    each = sum(
        np.prod(s.shard_shape(leaf.shape))
        for leaf, s in zip(
            jax.tree.leaves(plain), jax.tree.leaves(shardings), strict=True
        )
    )
    assert each < whole / (3 if name == "rqvae" else 4)


@pytest.mark.parametrize(
    ("names", "shape", "spec"),
    [
        (("embed", "heads"), (16, 16), P("fsdp", "tensor")),
        (("heads", "embed"), (16, 16), P("tensor", "fsdp")),
        (("layers", "embed", "mlp"), (3, 16, 64), P(None, "fsdp", "tensor")),
        (("embed", "mlp"), (6, 64), P(None, "tensor")),  # 6 over 4 devices
        (("vocab", "embed"), (7, 8), P(None, "fsdp")),  # 7 over 2
        (("heads", "mlp"), (16, 16), P("tensor", None)),  # a mesh axis is used once
        (
            (None, None, "conv_in", "conv_out"),
            (3, 3, 8, 8),
            P(None, None, None, "fsdp"),
        ),
        (("batch", None), (16, 3), P(("data", "fsdp"), None)),
    ],
)
def test_names_become_axes_of_the_mesh(names, shape, spec):
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    assert sharding.partition_spec(names, shape, mesh) == spec


def test_adafactors_factored_statistics_are_on_every_device():
    """They are small, and have fewer axes than their parameters."""
    config = default().transformer.optimizer
    config.name = "adafactor"
    tx = optimizer.make_optimizer(config, optax.constant_schedule(1e-3))

    def init():
        kernel = nn.LogicallyPartitioned(jnp.ones((256, 512)), ("embed", "mlp"))
        bias = nn.LogicallyPartitioned(jnp.ones(512), ("mlp",))
        return tx.init({"kernel": kernel, "bias": bias})

    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    shardings = sharding.state_shardings(jax.eval_shape(init), mesh)
    state = jax.jit(lambda: sharding.unbox(init()), out_shardings=shardings)()
    # The chain is clipping, [factored sums, clipping, mean], decay, learning rate.
    factored, _, mean = state[1]
    assert factored.v_row["kernel"].size + factored.v_col["kernel"].size == 256 + 512
    assert factored.v_row["kernel"].sharding.is_fully_replicated
    assert mean.ema["kernel"].sharding.spec == P("fsdp", "tensor")
    assert factored.v["bias"].sharding.spec == P("tensor")


def test_an_unknown_name_is_an_error():
    """Flax would silently replicate the axis."""
    box = nn.LogicallyPartitioned(
        jax.ShapeDtypeStruct((4, 8), jnp.float32), ("embd", None)
    )
    with pytest.raises(
        sharding.MeshError, match=r"unknown logical axis 'embd'.*\(4, 8\)"
    ):
        sharding.state_shardings({"w": box}, sharding.make_mesh())


def test_abstract_states_have_shapes_and_shardings():
    mesh = sharding.make_mesh(fsdp=4)
    value = jax.ShapeDtypeStruct((4, 8), jnp.float32)
    tree = {
        "w": nn.LogicallyPartitioned(value, ("embed", "mlp")),
        "key": jax.random.key(0),
    }
    tree = jax.eval_shape(lambda: jax.tree.map(lambda x: jnp.zeros(4), {"b": 0})) | tree
    found = sharding.abstract_state(tree, mesh)
    assert found["w"].shape == (4, 8) and found["w"].sharding.spec == P(
        "fsdp", "tensor"
    )
    assert found["b"].sharding.is_fully_replicated
    assert jax.dtypes.issubdtype(found["key"].dtype, jax.dtypes.prng_key)


def constraints(fn, *args):
    return jax.jit(fn).lower(*args).as_text().count("sharding_constraint")


def test_constraints_of_models_reach_the_compiler():
    """With the deprecated `with mesh:` there would be none."""
    model, args = MODELS["transformer"]
    params = sharding.unbox(boxed("transformer"))
    assert constraints(model.apply, params, *args) == 0
    with sharding.context(sharding.make_mesh(fsdp=2, tensor=2)):
        assert constraints(model.apply, params, *args) >= 3


def test_caches_are_sharded_by_batch_and_heads():
    model, args = MODELS["transformer"]
    params = sharding.unbox(boxed("transformer"))
    mesh = sharding.make_mesh(fsdp=2, tensor=2)

    def caches(params):
        return model.apply(params, 8, method=decoding.init_caches)

    with sharding.context(mesh):
        compiled = jax.jit(caches).lower(params).compile()
    found = jax.tree.leaves(compiled.output_shardings)
    assert found
    for where in found:
        assert where.spec == P(None, ("data", "fsdp"), "tensor")


def test_an_axis_that_does_not_divide_is_replicated():
    with sharding.context(sharding.make_mesh(data=1, fsdp=4, tensor=2)):
        found = jax.jit(lambda x: sharding.constrain(x, "batch", "vocab"))(
            jnp.zeros((6, 10))
        )
    assert found.sharding.shard_shape((6, 10)) == (6, 5)


def test_one_device_and_eight_give_the_same_logits():
    model, args = MODELS["transformer"]
    params = sharding.unbox(jax.jit(model.init)(jax.random.key(0), *args))
    rng = np.random.default_rng(0)
    batch = {"codes": rng.integers(0, 16, args[0].shape, np.int32)}
    codebook = rng.normal(size=args[2].shape).astype(np.float32)
    outputs = []
    one = sharding.make_mesh(devices=jax.devices()[:1])
    for mesh in (one, sharding.make_mesh(fsdp=2, tensor=2)):
        shardings = sharding.state_shardings(boxed("transformer"), mesh)
        with sharding.context(mesh):
            codes = sharding.shard_batch(batch, mesh)["codes"]
            placed = jax.device_put(params, shardings)
            outputs.append(jax.jit(model.apply)(placed, codes, args[1], codebook))
    assert len(outputs[1].sharding.device_set) == 8
    np.testing.assert_allclose(*map(np.asarray, outputs), atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (8, 1, 1)),
        ({"fsdp": 4}, (2, 4, 1)),
        ({"data": 2, "fsdp": -1, "tensor": 2}, (2, 2, 2)),
        ({"data": 1, "fsdp": 1, "tensor": 8}, (1, 1, 8)),
    ],
)
def test_a_mesh_takes_all_devices(sizes, shape):
    mesh = sharding.make_mesh(**sizes)
    assert mesh.axis_names == sharding.AXES and mesh.devices.shape == shape
    assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"data": 3},
            "mesh.data=3, mesh.fsdp=1, mesh.tensor=1 do not multiply to the 8",
        ),
        ({"data": 16}, "mesh.data=16, .* do not multiply to the 8 devices"),
        ({"fsdp": 3}, "mesh.data=-1, mesh.fsdp=3, mesh.tensor=1 do not divide the 8"),
        ({"fsdp": -1}, "only one may be -1"),
        ({"tensor": 0}, "mesh.tensor=0: sizes are positive"),
    ],
)
def test_a_mesh_that_does_not_fit_is_an_error_with_its_numbers(sizes, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(**sizes)


def test_batches_are_sharded_over_data_and_fsdp():
    mesh = sharding.make_mesh(fsdp=2, tensor=2)
    rows = {"image": np.arange(8 * 3).reshape(8, 3), "label": np.arange(8)}
    batch = sharding.shard_batch(rows, mesh)
    for name, array in batch.items():
        np.testing.assert_array_equal(np.asarray(array), rows[name])
        assert array.sharding == sharding.batch_sharding(mesh)
        assert array.addressable_shards[0].data.shape[0] == 2


class Device(NamedTuple):
    process_index: int


class Torus:
    """A mesh of 4 x 4 chips; each process has 2 x 2, as TPU hosts do."""

    def __init__(self, data, tensor):
        places = [(x, y) for x in range(4) for y in range(4)]
        grid = np.empty(16, object)
        grid[:] = [Device(x // 2 * 2 + y // 2) for x, y in places]
        self.devices = grid.reshape(data, 1, tensor)
        self.shape = {"data": data, "fsdp": 1, "tensor": tensor}


@pytest.mark.parametrize(
    "sizes, shards", [((16, 1), 4), ((8, 2), 4), ((4, 4), 2), ((1, 16), 1)]
)
def test_hosts_that_hold_the_same_rows_read_the_same(sizes, shards):
    """A row of the torus belongs to two hosts."""
    assert sharding.batch_shard(Torus(*sizes)) == (0, shards)


def test_hosts_that_hold_some_of_the_same_rows_are_an_error():
    mesh = Torus(16, 1)
    mesh.devices = mesh.devices.reshape(-1)[:15].reshape(5, 1, 3)
    mesh.shape = {"data": 5, "fsdp": 1, "tensor": 3}
    with pytest.raises(sharding.MeshError, match="make mesh.tensor smaller"):
        sharding.batch_shard(mesh)


def test_a_batch_that_does_not_divide_is_an_error_with_its_numbers():
    mesh = sharding.make_mesh(fsdp=2)
    sharding.check_batch(32, mesh, grad_accum_steps=4)
    with pytest.raises(ValueError, match=r"batch_size=24 .* 4 x 2 x 2 = 16"):
        sharding.check_batch(24, mesh, grad_accum_steps=2)
    with pytest.raises(ValueError, match=r"a batch of 12 \('x'\) .* data x fsdp = 8"):
        sharding.shard_batch({"x": np.zeros((12, 2))}, mesh)
