# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reports memory, FLOPs, communication and step-time bounds of compiled programs."""

from __future__ import annotations

import math
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax

from rq import flops
from rq.aot import chips, gpu_report, programs, targets
from rq.aot.chips import GIB
from rq.aot.collectives import collectives
from rq.config import ConfigError
from rq.parallel import sharding

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
WRONG_OPTION = "INVALID_ARGUMENT: No such compile option"
MARGIN = 1.25  # batches predicted to need this many times the memory are not tried
PARTITIONER = "spmd-partitioning"  # a compiler pass
_NEEDED = re.compile(r"\(([\d.]+)([KMGT])\) exceeds|[Uu]sed ([\d.]+)([KMGT]) of")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def make(
    config,
    program: str,
    topology: str,
    slices: int = 1,
    options: Mapping[str, str] | None = None,
) -> dict:
    """Returns the figures of a config's program, compiled for a topology.

    Args:
      config: the whole config; its `mesh` is the mesh of chips.
      program: one of `rq.aot.programs.PROGRAMS`.
      topology, slices: see `rq.aot.targets.find`.
      options: compiler options.

    Returns:
      A dictionary for JSON. If the program needs more memory than a chip has, 'fits' is
      False and the figures of the compiled program are missing.

    Raises:
      ConfigError, MeshError, TopologyError: if config, mesh or topology is wrong.
    """
    target = targets.find(topology, slices)
    chip, devices = target.chip, target.devices
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    start = time.perf_counter()
    if program == "sample":
        traced, size = programs.sampler(config, mesh), config.sampling.batch_size
    else:
        traced = programs.train_step(config, program, mesh)
        size = config[program].batch_size
    result = {
        "program": program,
        "topology": topology if slices == 1 else f"{slices} x {topology}",
        "chips": len(devices),
        "mesh": dict(mesh.shape),
        "batch_size": size,
        "options": dict(options or {}),
        "operations": flops.program_flops(traced.jaxpr),
        "model_operations": programs.model_flops(config, program, mesh, traced),
        "hbm": chip.hbm,
    }
    with sharding.context(mesh):
        lowered = traced.lower()
    middle = time.perf_counter()
    result["lowering_seconds"] = middle - start
    try:
        compiled, dumped = _compile(lowered, options or {})
    except jax.errors.JaxRuntimeError as error:
        if str(error).startswith(WRONG_OPTION):
            raise ConfigError(f"--xla: {error}") from None
        if OUT_OF_MEMORY not in str(error):
            raise
        return result | {"fits": False, "needed": _needed(str(error))}
    result["compile_seconds"] = time.perf_counter() - middle
    memory, analysis = compiled.memory_analysis(), compiled.cost_analysis() or {}
    result |= {
        "fits": memory.peak_memory_in_bytes <= chip.hbm,
        "memory": {
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "aliased": memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
            "peak": memory.peak_memory_in_bytes,
        },
        # The compiler's own count for one chip; each loop's body counts once.
        "xla": {name: analysis.get(name) for name in ("flops", "bytes accessed")},
        "collectives": _collectives(compiled.as_text(), len(devices), False),
        "partitioned": _collectives(dumped.partitioned, len(devices), True),
    }
    if target.gpus:
        code_shape = programs.code_shape(config) if program == "sample" else None
        cache = programs.cache_bytes(config, mesh) if program == "sample" else None
        result["kernels"] = gpu_report.make(
            compiled.as_text(), dumped.thunks, code_shape, cache
        )
    return result | {"estimate": estimate(result, chip, target.networks)}


class _Dumped(NamedTuple):
    """Text that the compiler writes; '' where it has none.

    Attributes:
      partitioned: the program after partitioning, before the backend's own passes.
      thunks: what a GPU executable does, see `rq.aot.kernels`.
    """

    partitioned: str
    thunks: str


def _compile(lowered, options: Mapping[str, str]):
    """Returns the compiled program, and the text that the compiler dumped."""
    with tempfile.TemporaryDirectory() as folder:
        dump = {"xla_dump_to": folder, "xla_dump_hlo_pass_re": f".*{PARTITIONER}.*"}
        compiled = lowered.compile(dump | dict(options))

        def last(*patterns):
            found = [
                path for name in patterns for path in pathlib.Path(folder).glob(name)
            ]
            return max(found).read_text() if found else ""

        partitioned = last(
            f"*.after_tpu-{PARTITIONER}.*.txt", "*.after_spmd_partitioner.txt"
        )
        return compiled, _Dumped(partitioned, last("*.thunk_sequence*.txt"))


def _collectives(text: str, devices: int, partitioned: bool) -> dict:
    found = collectives(text, devices, partitioned)
    return {kind: one._asdict() for kind, one in found.items()}


def largest_batch(
    measure: Callable[[int], dict], hbm: float, first: int = 1
) -> tuple[int, dict[int, dict]]:
    """Returns the largest batch that fits, a power of two per device.

    A batch is not tried if linear extrapolation from two smaller ones predicts `MARGIN`
    times the memory.

    Args:
      measure: function of examples per device that returns a report, as `make` does.
      hbm: bytes of memory of a chip.
      first: examples per device at the start of the search.

    Returns:
      Examples per device (1 if none fits), and the reports of all sizes tried.
    """
    found: dict[int, dict] = {}

    def fits(number):
        if number not in found:
            found[number] = measure(number)
        return found[number]["fits"]

    best = 2 ** int(math.log2(first))
    if fits(best):
        # All memory but the arguments grows with the batch: start near the answer.
        memory = found[best]["memory"]
        grows = max(1e-3 * memory["peak"], memory["peak"] - memory["arguments"])
        room = (hbm - memory["arguments"]) / grows
        best *= 2 ** max(0, int(math.log2(room)))
    while best > 1 and not fits(best):
        best //= 2
    while fits(best) and not _far_too_large(2 * best, found, hbm) and fits(2 * best):
        best *= 2
    return best, found


def _far_too_large(number: int, found: Mapping[int, dict], hbm: float) -> bool:
    sizes = [n for n in sorted(found) if found[n]["fits"]]
    if len(sizes) < 2:
        return False
    (n, a), (m, b) = ((n, found[n]["memory"]["peak"]) for n in sizes[-2:])
    return b + (number - m) * (b - a) / (m - n) > MARGIN * hbm


def make_for_largest_batch(
    config,
    program: str,
    topology: str,
    slices: int = 1,
    options: Mapping[str, str] | None = None,
) -> dict:
    """Returns `make`'s report for the largest batch that fits into memory.

    Its 'fit' has the examples per device and, for training, the `grad_accum_steps` that
    the config's own batch size needs.
    """
    chip, devices, *_ = targets.find(topology, slices)
    parts = sharding.batch_parts(sharding.make_mesh(**config.mesh, devices=devices))
    with config.unlocked():
        config = config.copy_and_resolve_references()
    section = config.sampling if program == "sample" else config[program]
    own = section.batch_size
    if program != "sample":
        section.grad_accum_steps = 1

    def measure(number):
        section.batch_size = number * parts
        return make(config, program, topology, slices, options)

    number, found = largest_batch(measure, chip.hbm, max(1, own // parts))
    fit = {
        "batch_size_of_config": own,
        "examples_per_part": number,
        "needed": {n: _peak(tried) for n, tried in sorted(found.items())},
    }
    if program != "sample":
        fit["grad_accum_steps"] = -(-own // found[number]["batch_size"])
    return found[number] | {"fit": fit}


def _peak(result: dict) -> float | None:
    """Returns the memory that a program needs on a chip, or None if unknown."""
    return result["memory"]["peak"] if "memory" in result else result["needed"]


def _needed(message: str) -> float | None:
    """Returns the bytes needed according to the compiler's message, if any."""
    found = _NEEDED.search(message)
    if not found:
        return None
    number, unit = [part for part in found.groups() if part is not None]
    return float(number) * _UNITS[unit]


def estimate(result: dict, chip: chips.Chip, slices: int = 1) -> dict:
    """Returns lower bounds of the step time, and an upper bound of MFU.

    Compute is FLOPs over the peak. Memory is arguments read, outputs written, and
    temporaries written and read once, over the bandwidth. Communication is bytes sent
    over the links' bandwidth; it is not estimated across slices or hosts.
    As these may overlap, the largest is a lower bound of the step time.
    """
    memory, devices = result["memory"], result["chips"]
    moved = memory["arguments"] + memory["outputs"] + 2 * memory["temporaries"]
    sent = sum(kind["wire"] for kind in result["collectives"].values())
    seconds = {
        "compute": result["operations"] / devices / chip.flops,
        "memory": moved / chip.hbm_bandwidth,
    }
    if slices == 1:
        seconds["communication"] = sent / chip.ici_bandwidth
    limit = max(seconds, key=seconds.__getitem__)
    ideal = result["model_operations"] / devices / chip.flops
    return {
        "seconds": seconds,
        "limit": limit,
        "step_seconds": seconds[limit],
        "images_per_second": result["batch_size"] / seconds[limit],
        "mfu_at_most": ideal / seconds[limit],
    }


def _size(number: float) -> str:
    for unit, size in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:.0f} B"


def text(result: dict) -> str:
    """Returns the report as text."""
    mesh = " x ".join(f"{name}={size}" for name, size in result["mesh"].items())
    lines = [
        f"{result['program']} on {result['topology']}: {result['chips']} chips, "
        f"{mesh}, batch {result['batch_size']}",
        f"FLOPs        {result['operations']:.3e} per step, "
        f"{result['model_operations']:.3e} without recomputation",
    ]
    if "memory" not in result:
        needed = result["needed"]
        needs = "more" if needed is None else f"{_size(needed)} or more"
        lines.append(f"DOES NOT FIT needs {needs}, of {_size(result['hbm'])} per chip")
        return "\n".join(lines)
    if "fit" in result:
        fit = result["fit"]
        line = (
            f"batch        {fit['examples_per_part']} per batch shard is the largest "
            "power of two that fits"
        )
        if "grad_accum_steps" in fit:
            line += (
                f"; the config's {fit['batch_size_of_config']} needs "
                f"{result['program']}.grad_accum_steps={fit['grad_accum_steps']}"
            )
        lines.append(line)
    sizes = ", ".join(f"{k} {_size(v)}" for k, v in result["memory"].items())
    fits = "fits" if result["fits"] else "DOES NOT FIT"
    lines.append(f"memory       {sizes}; {fits} into {_size(result['hbm'])} per chip")
    for kind, found in result["collectives"].items():
        lines.append(
            f"{kind:12s} {found['count']} per step, data {_size(found['bytes'])}, "
            f"sent by each chip {_size(found['wire'])}"
        )
    xla_flops, moved = result["xla"]["flops"], result["xla"]["bytes accessed"]
    if xla_flops and moved:
        lines.append(
            f"XLA's count  {xla_flops:.3e} FLOPs, {_size(moved)} accessed per chip, "
            "each loop's body once"
        )
    if "kernels" in result:
        lines += gpu_report.text(result["kernels"])
    bounds = result["estimate"]
    parts = ", ".join(f"{k} {1e3 * v:.2f} ms" for k, v in bounds["seconds"].items())
    lines += [
        f"at least     {parts}: limited by {bounds['limit']}",
        f"at most      {bounds['images_per_second']:.0f} images/s, "
        f"MFU {100 * bounds['mfu_at_most']:.0f} %",
        f"compiled in  {result['compile_seconds']:.0f} s",
    ]
    return "\n".join(lines)
