# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests the counts of kernels, copies and products of programs for GPUs."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from rq.aot import chips, gpu_report, gpus, hlo, kernels, targets

ROOT = pathlib.Path(__file__).parent.parent

# As XLA writes them: a loop of 64 positions, a loop of 4 depths inside it.
THUNKS = """\
000: kCommandBuffer [source       | next=003 (1)]
    001: kCopy         [source | sink] kCopy
    002: kCustomKernel [source | sink] iota grid: [1, 1, 1] threads: [64, 1, 1]
003: kWhile         [prev=000 (1) | next=020 (1)]
condition:
    004: kCustomKernel [source | sink] compare grid: [1, 1, 1] threads: [1, 1, 1]
  body:
    005: kDynamicSliceFusion [prev=014 (4) | next=000 (1)] params=1, results=1
        006: kCopy [source | sink] kCopy
    000: kCommandBuffer      [prev=005 (1) | next=010 (1)]
        007: kCustomKernel [source       | sink        ] norm grid: [500, 1, 1]
        008: kCustomKernel [source       | next=009 (1)] gemm grid: [768, 1, 1]
        009: kGemm         [source       | sink        ] gemm
    010: kWhile              [prev=000 (1) | next=018 (1)]
condition:
        011: kCustomKernel [source | sink] compare grid: [1, 1, 1] threads: [1, 1, 1]
      body:
        012: kCustomKernel [source       | next=104 (39)] attention grid: [1, 1, 1]
        013: kConditional   [prev=000 (1) | next=017 (1)]
          false_branch:
            014: kCustomKernel [source       | next=108 (3)] sum grid: [4, 1, 1]
            015: kCustomKernel [source       | next=108 (2)] select grid: [4, 1, 1]
          true_branch:
            016: kCopy [source | sink] kCopy
        017: kCustomKernel [source       | sink        ] argmax grid: [4, 1, 1]
    018: kCustomKernel       [source       | sink        ] embed grid: [4, 1, 1]
019: kOutfeed       [source | sink        ] outfeed
020: kCustomKernel  [prev=009 (1) | sink        ] transpose grid: [1000, 1, 1]
"""

TEXT = """HloModule m

%fused (a: bf16[500,64,24,64], b: f32[8,16]) -> bf16[500,64,24,64] {
  %a = bf16[500,64,24,64]{3,2,1,0} parameter(0)
  ROOT %copy.1 = bf16[500,64,24,64]{3,2,1,0} copy(%a)
}

%gemm (x: bf16[8,16], w: bf16[16,32]) -> f32[8,32] {
  %x = bf16[8,16]{1,0} parameter(0)
  %w = bf16[16,32]{1,0} parameter(1)
  ROOT %dot.1 = f32[8,32]{1,0} dot(%x, %w), lhs_contracting_dims={1}
}

%wide (x: bf16[8,16], w: bf16[16,32]) -> f32[8,32] {
  %x = bf16[8,16]{1,0} parameter(0)
  %w = bf16[16,32]{1,0} parameter(1)
  %x.32 = f32[8,16]{1,0} convert(%x)
  %w.32 = f32[16,32]{1,0} convert(%w)
  ROOT %dot.2 = f32[8,32]{1,0} dot(%x.32, %w.32), lhs_contracting_dims={1}
}

%depth_condition (c: (s32[])) -> pred[] {
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%depth (c: (s32[])) -> (s32[]) {
  %f = f32[8,32]{1,0} fusion(%x, %w), kind=kCustom, calls=%wide
  ROOT %t = (s32[]) tuple(%i)
}

%position (c: (s32[])) -> (s32[]) {
  %y = f32[8,32]{1,0} fusion(%x, %w), kind=kCustom, calls=%gemm
  %small = bf16[500,1536]{1,0} copy(%h)
  %moved = bf16[500,64,24,64]{3,2,1,0} fusion(%cache, %y), kind=kLoop, calls=%fused
  %inner = (s32[]) while(%t), condition=%depth_condition, body=%depth, \
backend_config={"known_trip_count":{"n":"4"}}
  ROOT %t = (s32[]) tuple(%i)
}

ENTRY %main (x: f32[8,16]) -> f32[8,16] {
  %first = bf16[500,64,24,64]{3,2,1,0} copy(%zeros)
  %outer = (s32[]) while(%t), condition=%depth_condition, body=%position, \
backend_config={"known_trip_count":{"n":"64"}}
  %a = f32[8,16]{1,0} parameter(0)
  %b = f32[16,16]{1,0} parameter(1)
  ROOT %last = f32[8,16]{1,0} custom-call(%a, %b), custom_call_target="__cublas$gemm"
}
"""
CACHE = 2 * 500 * 64 * 24 * 64


def test_kernels_count_once_per_iteration_and_graphs_are_one_launch():
    steps = kernels.parse(THUNKS, TEXT)
    depth = kernels.Count(kernels=4, launches=4, host_reads=1)
    assert kernels.loops(steps, 4) == [depth]
    # A copied slice, a graph of three, four depths, and one more.
    position = kernels.Count(
        kernels=1 + 3 + 4 * 4 + 1,
        launches=1 + 1 + 4 * 4 + 1,
        command_buffers=1,
        host_reads=4,
    )
    assert kernels.loops(steps, 64) == [position]
    whole = position * 64 + kernels.Count(3, 2 + 1, 1, 0, 1)
    assert kernels.count(steps) == whole


def test_a_loop_within_a_graph_costs_the_host_nothing():
    thunks = """\
000: kCommandBuffer [source | sink]
    001: kWhile         [source | sink]
condition:
        002: kCustomKernel [source | sink] compare
      body:
        003: kCustomKernel [source | sink] add
        004: kConditional [source | sink]
          branch_0:
            005: kCustomKernel [source | sink] multiply
"""
    text = (
        "ENTRY %main (x: f32[]) -> f32[] {\n  %loop = (s32[]) while(%t), condition=%c, "
        'body=%b, backend_config={"known_trip_count":{"n":"5"}}\n}\n'
    )
    found = kernels.count(kernels.parse(thunks, text))
    assert found == kernels.Count(kernels=5 * 3, launches=1, command_buffers=1)


def test_a_loop_of_unknown_length_counts_once_and_makes_the_host_wait():
    thunks = """\
000: kWhile         [source | sink]
condition:
    001: kCustomKernel [source | sink] compare
  body:
    002: kCustomKernel [source | sink] add
"""
    text = (
        "ENTRY %main (x: f32[]) -> f32[] {\n"
        "  %loop = (s32[]) while(%t), condition=%c, body=%b\n}\n"
    )
    found = kernels.count(kernels.parse(thunks, text))
    assert found == kernels.Count(kernels=2, launches=2, host_reads=1)


def test_copies_of_caches_and_float32_products_are_found():
    assert hlo.copies(TEXT, CACHE) == 64  # not the one before the loop
    assert hlo.copies(TEXT, 500 * 1536 * 2) == 128
    assert hlo.float32_products(TEXT) == 64 * 4 + 1  # not that of bfloat16


def test_the_report_has_positions_and_steps_of_the_head():
    found = gpu_report.make(TEXT, THUNKS, (8, 8, 4), CACHE)
    assert found["position"]["kernels"] == 21 and found["head_step"]["kernels"] == 4
    lines = gpu_report.text(found)
    assert "21 in 19 launches a position" in lines[0]
    assert "257 waits" not in lines[1] and "256 waits" in lines[1]
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("name", ["h100", "h100:", "h100:x8", "h100:0", "h100:2x2x2"])
def test_a_wrong_shape_of_gpus_is_refused(name):
    with pytest.raises(chips.TopologyError, match="h100:2x8"):
        targets.find(name)


def test_slices_are_of_tpus_only():
    with pytest.raises(chips.TopologyError, match="--slices"):
        targets.find("h100:8", slices=2)


needs_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="needs JAX's CUDA plugin: pip install -e '.[aot-gpu]'",
)


@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is not None,
    reason="JAX's CUDA plugin is installed",
)
def test_without_the_plugin_one_line_says_how_to_install_it():
    with pytest.raises(chips.TopologyError, match=r"pip install -e '\.\[aot-gpu\]'"):
        gpus.find("h100:1")


def aot(tmp_path, *flags):
    """Returns the report of `python -m rq.aot` on the smallest config."""
    out = tmp_path / "aot.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "rq.aot", "--config=configs/digits.py:tiny",
            *flags, f"--out={out}",
        ],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return json.loads(out.read_text())


@needs_plugin
@pytest.mark.slow
@pytest.mark.parametrize("topology, hosts", [("h100:4", 1), ("h200:2x2", 2)])
def test_a_train_step_compiles_for_gpus(topology, hosts, tmp_path):
    found = aot(tmp_path, f"--topology={topology}", "--config.mesh.fsdp=4")
    assert found["fits"] and found["collectives"] and found["partitioned"]
    assert found["kernels"]["step"]["kernels"] > 100
    assert found["kernels"]["step"]["host_transfers"] == 0
    assert ("communication" in found["estimate"]["seconds"]) == (hosts == 1)


@needs_plugin
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["h100:1", "a100:1"])
def test_the_sampler_for_gpus_copies_no_cache_and_has_no_float32_product(
    topology, tmp_path
):
    found = aot(
        tmp_path, f"--topology={topology}", "--program=sample",
        "--config.transformer.model.dtype=bfloat16", "--config.sampling.batch_size=8",
    )  # fmt: skip
    counted = found["kernels"]
    assert counted["cache_copies"] == 0 and counted["float32_products"] == 0
    assert counted["step"]["host_transfers"] == 0
    assert counted["step"]["command_buffers"] > 0
