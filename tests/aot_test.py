# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests FLOPs, collectives and memory of programs for unavailable devices."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rq import flops
from rq.aot import chips, compiled_report, programs
from rq.aot.collectives import collectives
from rq.config import ConfigError
from rq.parallel import sharding

ROOT = pathlib.Path(__file__).parent.parent
LAYERS = 3


def tiny(**changes):
    """Returns the config `digits.py:tiny`, with other fields by dotted name."""
    spec = importlib.util.spec_from_file_location("digits", ROOT / "configs/digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("tiny")
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changes.items()}
    )
    return config


def traced_and_xla(f, *args):
    """Returns FLOPs by our count and by XLA's."""
    traced = jax.jit(f).trace(*args)
    return flops.program_flops(traced.jaxpr), traced.lower().cost_analysis()["flops"]


def test_products_and_convolutions_are_counted_as_xla_does():
    x, w = jnp.ones((8, 16, 32)), jnp.ones((32, 64))
    ours, xla = traced_and_xla(lambda x, w: jnp.einsum("bti,io->bto", x, w), x, w)
    assert ours == xla == 2 * 8 * 16 * 32 * 64
    image, kernel = jnp.ones((2, 16, 16, 8)), jnp.ones((1, 1, 8, 24))

    def conv(image, kernel):
        return jax.lax.conv_general_dilated(
            image, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    ours, xla = traced_and_xla(conv, image, kernel)
    assert ours == xla == 2 * 2 * 8 * 8 * 8 * 24


def test_loops_count_once_per_iteration():
    """XLA counts their bodies once; unrolled, both counts are equal."""
    w = jnp.ones((LAYERS, 64, 64))

    def run(unroll):
        def f(x, w):
            return jax.lax.scan(lambda x, w: (x @ w, None), x, w, unroll=unroll)[0]

        return traced_and_xla(f, jnp.ones((16, 64)), w)

    expected = LAYERS * 2 * 16 * 64 * 64
    ours, xla = run(unroll=1)
    assert ours == expected and xla < expected
    ours, xla = run(unroll=LAYERS)
    assert ours == expected and xla == pytest.approx(expected, rel=1e-3)


def test_what_no_output_needs_is_not_counted():
    def f(x, w):
        y, pull_back = jax.vjp(lambda x, w: x @ w, x, w)
        return y, pull_back(y)[0]  # not the gradient of w

    ours, xla = traced_and_xla(f, jnp.ones((16, 32)), jnp.ones((32, 64)))
    assert ours == 2 * 2 * 16 * 32 * 64 == pytest.approx(xla, rel=1e-3)


@pytest.mark.parametrize("name", ["transformer", "rqvae"])
def test_a_whole_train_step_is_counted_as_xla_counts_it_without_loops(name):
    """Except elementwise operations, which XLA adds, and padding, which it skips."""
    config = tiny(**{
        "data.resolution": 32,  # padding is a larger part of smaller images
        "transformer.model.width": 128,
        "transformer.model.body.heads": 4,
        "transformer.model.head.heads": 4,
        "rqvae.model.ch": 64,
        "rqvae.adversarial.weight": 0.75,
    })  # fmt: skip
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    traced = programs.train_step(config, name, mesh)
    with sharding.context(mesh):
        xla = traced.lower().cost_analysis()["flops"]
    ours = flops.program_flops(traced.jaxpr)
    assert 0.75 * xla < ours < 1.1 * xla


def test_recomputation_is_counted_separately():
    config = tiny(**{"transformer.model.remat": "full"})
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    traced = programs.train_step(config, "transformer", mesh)
    whole = flops.program_flops(traced.jaxpr)
    needed = programs.model_flops(config, "transformer", mesh, traced)
    assert 1.1 * needed < whole < 1.34 * needed


def compiled_text(f, *args):
    return jax.jit(f).lower(*args).compile().as_text()


@pytest.fixture
def on_eight():
    mesh = sharding.make_mesh(fsdp=8, data=1)

    def put(shape, *axes):
        return jax.ShapeDtypeStruct(
            shape, jnp.float32, sharding=NamedSharding(mesh, P(*axes))
        )

    return mesh, put


def test_collectives_of_a_program_are_found_with_their_bytes(on_eight):
    mesh, put = on_eight

    def f(x, w):  # batch and weights are sharded: the weights are gathered
        w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
        y = x @ w
        return jnp.sum(y, axis=0)

    text = compiled_text(f, put((16, 64), "fsdp"), put((64, 128), "fsdp"))
    found = collectives(text, 8)
    assert set(found) == {"all-gather", "all-reduce"}
    gather, reduce = found["all-gather"], found["all-reduce"]
    assert gather == (1, 64 * 128 * 4, 64 * 128 * 4 * 7 / 8, 64 * 128 * 4 / 8)
    assert reduce == (1, 128 * 4, 2 * 128 * 4 * 7 / 8, 128 * 4)


def test_collectives_in_loops_count_once_per_iteration(on_eight):
    mesh, put = on_eight

    def layer(x, w):
        w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
        return jnp.tanh(x @ w), None

    def f(x, w):
        return jax.lax.scan(layer, x, w)[0]

    args = put((16, 64), "fsdp"), put((LAYERS, 64, 64), None, "fsdp")
    found = collectives(compiled_text(f, *args), 8)["all-gather"]
    assert found.count == LAYERS
    assert found.bytes == LAYERS * 64 * 64 * 4


TEXT = """HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %r = f32[] add(%a, %b)
}

%wrapped (p: bf16[4,8]) -> bf16[32,8] {
  ROOT %g = bf16[32,8]{1,0} all-gather(%p), replica_groups=[2,8]<=[16], dimensions={0}
}

%all-reduce-scatter.3 (p: f32[16,8]) -> f32[4,8] {
  %r = f32[16,8]{1,0} all-reduce(%p), channel_id=9, replica_groups={{0,1,2,3}}
  ROOT %s = f32[4,8]{1,0} dynamic-slice(%r, %i, %c), dynamic_slice_sizes={4,8}
}

%condition (c: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(42)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (c: (s32[], f32[8])) -> (s32[], f32[8]) {
  %start = ((bf16[4,8]), bf16[32,8], u32[]) async-start(%p), calls=%wrapped
  %done = bf16[32,8]{1,0} async-done(%start), calls=%wrapped
  %fused = f32[4,8]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.3
  %scatter = f32[4]{0} reduce-scatter(%x), replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %t = (s32[], f32[8]) tuple(%i, %x)
}

%window_condition (c: (f32[8], u32[])) -> pred[] {
  %c = (f32[8]{0}, u32[]{:T(128)}) parameter(0)
  %eight = u32[]{:T(128)} constant(8)
  %counter = u32[]{:T(128)} get-tuple-element(%c), index=1
  ROOT %less = pred[] compare(%counter, %eight), direction=LT
}

%window (c: (f32[8], u32[])) -> (f32[8], u32[]) {
  %fifteen = u32[]{:T(128)} constant(15)
  %two = u32[]{:T(128)} constant(2)
  %c = (f32[8]{0}, u32[]{:T(128)}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%c), index=1
  %other = u32[]{:T(128)} add(%i, %fifteen)
  %next = u32[]{:T(128)} add(%i, %two)
  %step = f32[8]{0} collective-permute(%x), channel_id=20, \
source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %on = f32[64]{0} all-gather(%y), channel_id=21, replica_groups={{0,1,2,3}}
  ROOT %t = (f32[8]{0}, u32[]{:T(128)}) tuple(%step, %next)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %part = f32[4]{0} all-reduce(%z), channel_id=7, replica_groups=mesh['a'=2,'b'=8] {'a'}
  %rest = f32[4]{0} all-reduce(%z), channel_id=7, replica_groups=mesh['a'=2,'b'=8] {'a'}
  %loop = (s32[], /*index=1*/f32[8]{0}) while(%init), condition=%condition, body=%body
  %hidden = (f32[8], u32[]) while(%i), condition=%window_condition, body=%window
  %whole = f32[64]{0} all-gather(%y), channel_id=21, replica_groups={{0,1,2,3}}
  %two = (f32[8]{0}, f32[8]{0}) all-gather-start(%x), replica_groups={{0,1}}
  %begin = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%y), \
source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %send = f32[8]{0} collective-permute(%y), source_target_pairs={{0,1},{1,0}}
  ROOT %out = f32[8]{0} all-reduce(%z), replica_groups={}, to_apply=%add
}
"""


def test_the_text_of_other_compilers_is_read():
    found = collectives(TEXT, 4)
    gathered, half = 42 * 32 * 8 * 2, 32
    # In a loop, in the entry, and one of 256 bytes that continues in another loop.
    sent, held = gathered * 7 / 8 + half / 2 + 192, gathered / 8 + half / 2 + 64
    assert found["all-gather"] == (44, gathered + half + 256, sent, held)
    # One over pairs, and one over four devices, as on TPUs.
    sent = 42 * (16 + 16 * 8 * 4 * 3 / 4)
    assert found["reduce-scatter"] == (84, 42 * (32 + 512), sent, 42 * (16 + 128))
    # An exchange, and steps of a ring of four, which needs three per round: one alone,
    # and one in each of four iterations, from 0 to 8 by 2.
    expected = pytest.approx((6, 192, 192, 32 + 5 * 32 / 3))
    assert found["collective-permute"] == expected
    # One on channel 7, listed twice, over pairs; and one over all four devices.
    assert found["all-reduce"] == (2, 48, 2 * 16 / 2 + 2 * 32 * 3 / 4, 48)


PARTITIONED = """HloModule m

ENTRY %main (x: f32[8]) -> f32[8] {
  %sum = bf16[64,8]{1,0} all-reduce(%dot), channel_id=1, replica_groups={{0,1,2,3}}
  %wide = f32[64,8]{1,0} convert(%sum)
  %own = f32[16,8]{1,0} dynamic-slice(%wide, %i, %zero), dynamic_slice_sizes={16,8}
  %whole = f32[64]{0} all-reduce(%x), channel_id=2, replica_groups={{0,1,2,3}}
  %part = f32[16]{0} dynamic-slice(%whole, %i), dynamic_slice_sizes={16}
  %used = f32[64]{0} add(%whole, %y)
  ROOT %lost = f32[64]{0} all-reduce(%x), channel_id=3, replica_groups={{0,1,2,3}}
}
"""


def test_an_all_reduce_of_which_only_slices_are_used_is_a_reduce_scatter():
    found = collectives(PARTITIONED, 4, partitioned=True)
    assert found["reduce-scatter"] == (1, 1024, 768, 256)
    assert found["all-reduce"] == (2, 512, 768, 512)
    assert set(collectives(PARTITIONED, 4)) == {"all-reduce"}


def test_the_estimate_is_the_largest_bound():
    chip = chips.Chip(hbm=1e9, flops=1e12, hbm_bandwidth=1e11, ici_bandwidth=1e10)
    result = {
        "operations": 8e12,
        "model_operations": 6e12,
        "chips": 4,
        "batch_size": 64,
        "memory": {"arguments": 1e10, "outputs": 1e10, "temporaries": 4e10},
        "collectives": {"all-gather": {"wire": 4e10}, "all-reduce": {"wire": 1e10}},
    }
    found = compiled_report.estimate(result, chip)
    assert found["seconds"] == {"compute": 2.0, "memory": 1.0, "communication": 5.0}
    assert found["limit"] == "communication" and found["images_per_second"] == 64 / 5
    assert found["mfu_at_most"] == pytest.approx(1.5 / 5)
    # Communication across slices is not estimated.
    found = compiled_report.estimate(result, chip, slices=2)
    assert found["limit"] == "compute" and "communication" not in found["seconds"]


def memory(number, fixed, each, hbm=16.0):
    """Returns a report of a program that needs this much memory."""
    peak = fixed + each * number
    if peak > hbm:
        return {"number": number, "fits": False, "needed": peak}
    sizes = {"arguments": fixed, "peak": peak}
    return {"number": number, "fits": True, "memory": sizes}


@pytest.mark.parametrize("first", [1, 8, 64, 4096])
@pytest.mark.parametrize(
    "fixed, each, largest",
    [(0.0, 1.0, 16), (0.5, 1.0, 8), (4.0, 0.1, 64), (10, 0.0007, 8192), (9, 5, 1)],
)
def test_the_largest_batch_is_found_from_wherever_the_search_starts(
    first, fixed, each, largest
):
    tried = []

    def measure(number):
        tried.append(number)
        return memory(number, fixed, each)

    number, found = compiled_report.largest_batch(measure, 16.0, first)
    assert number == found[number]["number"] == largest and found[number]["fits"]
    assert len(tried) == len(set(tried))  # a compilation takes a minute


@pytest.mark.parametrize(
    "each, expected", [(0.01, [32, 512, 1024]), (0.018, [32, 512])]
)
def test_the_search_takes_few_compilations_where_memory_grows_evenly(each, expected):
    """Twice the largest is tried only if it might fit."""
    tried = []

    def measure(number):
        tried.append(number)
        return memory(number, 6.0, each)

    assert compiled_report.largest_batch(measure, 16.0, 32)[0] == 512
    assert tried == expected


def test_if_nothing_fits_the_report_is_of_one_example():
    number, found = compiled_report.largest_batch(lambda n: memory(n, 20, 1), 16.0, 32)
    assert number == 1 and not found[1]["fits"]


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 16),
        ({"transformer.condition_dropout": 0.1, "sampling.guidance": (2.0,)}, 16),
        ({"transformer.order": "random", "sampling.parallel_steps": 5}, 5),
        (
            {
                "transformer.order": "random",
                "sampling.parallel_steps": 5,
                "sampling.levels": (1, 2),
            },
            10,
        ),
    ],
)
def test_the_sampler_traces_on_a_mesh(changes, steps):
    config = tiny(**changes, **{"sampling.batch_size": 16})
    traced = programs.sampler(config, sharding.make_mesh(2, 2, 2))
    (codes,) = jax.tree.leaves(traced.out_info)
    assert codes.shape == (16, 4, 4, 2) and codes.dtype == jnp.int32
    assert f"length={steps}\n" in str(traced.jaxpr)  # of the loop over body steps
    with pytest.raises(ConfigError, match="sampling.batch_size"):
        programs.sampler(tiny(), sharding.make_mesh(8, 1, 1))


def aot(*flags, status=0):
    """Runs `python -m rq.aot`; returns what it prints, and the JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "rq.aot", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == status, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr


needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu"
)


SMALLEST = ("--config=configs/digits.py:tiny", "--config.mesh.fsdp=4")


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("program", ["transformer", "sample"])
def test_the_smallest_config_compiles_for_four_chips(program, tmp_path):
    out = tmp_path / "aot.json"
    printed = aot(
        *SMALLEST,
        "--topology=v5e:2x2",
        f"--program={program}",
        "--config.sampling.batch_size=8",
        f"--out={out}",
        "--json",
    )
    result = json.loads(out.read_text())
    assert json.loads(printed[printed.index("{\n") : printed.rindex("}") + 1]) == result
    assert result["fits"] and "fits into 16.00 GiB" in compiled_report.text(result)
    assert 0 < result["memory"]["peak"] < 2**30
    assert result["estimate"]["images_per_second"] > 0
    if program == "transformer":  # gradients of sharded parameters are scattered
        assert result["partitioned"]["reduce-scatter"]["held"] > 0


@needs_compiler
@pytest.mark.slow
def test_several_slices_share_the_batch(tmp_path):
    out = tmp_path / "aot.json"
    aot(*SMALLEST, "--topology=v5e:2x2", "--slices=2", f"--out={out}")
    result = json.loads(out.read_text())
    assert result["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1}
    assert "communication" not in result["estimate"]["seconds"]
    printed = aot(
        *SMALLEST, "--config.mesh.data=1", "--config.mesh.fsdp=8",
        "--topology=v5e:2x2", "--slices=2", status=1,
    )  # fmt: skip
    assert "mesh.data=1 does not divide by the 2 slices" in printed
    printed = aot(*SMALLEST, "--topology=v5e:2x2", "--xla=nonsense=1", status=1)
    assert "'nonsense'" in printed and "Traceback" not in printed


@pytest.mark.slow
@needs_compiler
def test_what_does_not_fit_is_reported_with_exit_code_1():
    printed = aot("--config=configs/imagenet.py:3.8B", "--topology=v5e:2x2", status=1)
    assert "DOES NOT FIT" in printed and "of 16.00 GiB per chip" in printed
    assert "Traceback" not in printed


TOPOLOGIES = """
from rq.parallel import sharding
from rq.aot import chips, targets

for name in ("v5e:3x3", "v5e", "v9:2x2"):
    try:
        targets.find(name)
    except chips.TopologyError as error:
        print(error)
for name in ("v5e:4x4", "v5e:8x8", "v5p:4x4x4"):
    devices = targets.find(name).devices
    for tensor in (1, 2, 4, 8):
        mesh = sharding.make_mesh(tensor=tensor, devices=devices)
        print(name, tensor, *sharding.batch_shard(mesh))
"""


@needs_compiler
def test_known_and_unknown_topologies(tmp_path):
    """Runs in a new process: describing topologies disturbs JAX's profiler."""
    done = subprocess.run(
        [sys.executable, "-c", TOPOLOGIES],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert "--topology=v5e:3x3" in lines[0] and "pip install" in lines[0]
    assert all("is not one of" in line for line in lines[1:3])
    shards = {tuple(line.split()[:2]): line.split()[2:] for line in lines[3:]}
    # Hosts have 2 x 2 chips: if `tensor` is four or more, some hold the same rows.
    assert shards["v5e:4x4", "1"] == ["0", "4"] and shards["v5e:8x8", "2"] == [
        "0",
        "16",
    ]
    assert int(shards["v5e:4x4", "4"][1]) < 4 and int(shards["v5e:8x8", "8"][1]) < 16


def test_wrong_flags_are_one_line():
    printed = aot("--config=configs/digits.py:tiny", "--topology=x", status=1)
    assert "Traceback" not in printed and "--topology=x" in printed.splitlines()[-1]
