# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Memory, operations, communication and the time they allow, of a compiled program."""

from __future__ import annotations

import math
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Mapping

import jax

from rq.aot import chips, counts, programs
from rq.aot.chips import GIB
from rq.config import ConfigError
from rq.parallel import sharding

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
WRONG_OPTION = "INVALID_ARGUMENT: No such compile option"
MARGIN = 1.25  # by which a batch is far too large
PARTITIONER = "spmd-partitioning"  # the compiler's pass
_NEEDED = re.compile(r"\(([\d.]+)([KMGT])\) exceeds|[Uu]sed ([\d.]+)([KMGT]) of")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def make(
    config,
    program: str,
    topology: str,
    slices: int = 1,
    options: Mapping[str, str] | None = None,
) -> dict:
    """Compiles a program of a config for a topology.

    Args:
      config: its `mesh` says how the chips are used.
      program: one of `rq.aot.programs.PROGRAMS`.
      topology, slices: see `rq.aot.chips.find`.
      options: of the compiler.

    Returns:
      all figures, JSON; 'fits' is False, and those of the compiled program are missing,
      where it needs more memory than the chip has.

    Raises:
      ConfigError, MeshError, TopologyError: where the three do not fit together.
    """
    chip, devices = chips.find(topology, slices)
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
        "operations": counts.operations(traced.jaxpr),
        "model_operations": model_operations(config, program, mesh, traced),
        "hbm": chip.hbm,
    }
    with sharding.context(mesh):
        lowered = traced.lower()
    middle = time.perf_counter()
    result["lowering_seconds"] = middle - start
    try:
        compiled, partitioned = _compile(lowered, options or {})
    except jax.errors.JaxRuntimeError as error:
        if str(error).startswith(WRONG_OPTION):
            raise ConfigError(f"--xla: {error}") from None
        if OUT_OF_MEMORY not in str(error):
            raise
        return result | {"fits": False, "needed": _needed(str(error))}
    result["compile_seconds"] = time.perf_counter() - middle
    memory, analysis = compiled.memory_analysis(), compiled.cost_analysis()
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
        # The compiler's own count for one chip, of each loop's body once.
        "xla": {name: analysis.get(name) for name in ("flops", "bytes accessed")},
        "collectives": _collectives(compiled.as_text(), len(devices), False),
        "partitioned": _collectives(partitioned, len(devices), True),
    }
    return result | {"estimate": estimate(result, chip, slices)}


def _compile(lowered, options: Mapping[str, str]):
    """The program, and its text as the partitioner left it ('' where it was idle)."""
    with tempfile.TemporaryDirectory() as folder:
        dump = {"xla_dump_to": folder, "xla_dump_hlo_pass_re": f".*{PARTITIONER}.*"}
        compiled = lowered.compile(dump | dict(options))
        found = sorted(pathlib.Path(folder).glob(f"*.after_tpu-{PARTITIONER}.*.txt"))
        return compiled, found[-1].read_text() if found else ""


def _collectives(text: str, devices: int, partitioned: bool) -> dict:
    found = counts.collectives(text, devices, partitioned)
    return {kind: one._asdict() for kind, one in found.items()}


def largest_batch(
    measure: Callable[[int], dict], hbm: float, first: int = 1
) -> tuple[int, dict[int, dict]]:
    """The largest batch that fits, a power of two for each part.

    Args:
      measure: the report (as of `make`) of so many examples for each part of the batch.
      hbm: bytes of memory of a chip.
      first: where the search starts.

    Returns:
      examples for each part, 1 where not even that fits, and the reports of all that
      were tried. A batch is not tried where the line through two others puts it
      `MARGIN` over the memory.
    """
    found: dict[int, dict] = {}

    def fits(number):
        if number not in found:
            found[number] = measure(number)
        return found[number]["fits"]

    best = 2 ** int(math.log2(first))
    if fits(best):
        # What is no argument grows with the batch: a guess saves most of the search.
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
    """`make`, with the largest batch that fits into the chips in place of the config's.

    Its 'fit' says how many examples a chip takes at once, and in how many pieces it
    takes the config's own batch (`grad_accum_steps`; missing for the sampler).
    """
    chip, devices = chips.find(topology, slices)
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
    """Bytes of a chip's memory that a program needs, if the compiler said."""
    return result["memory"]["peak"] if "memory" in result else result["needed"]


def model_operations(config, program, mesh, traced) -> float:
    """Operations that a program's model needs, without those that it computes again.

    Those of the program itself where nothing is; otherwise it is traced anew without.
    """
    if program != "transformer":
        return counts.operations(traced.jaxpr)
    with config.unlocked():
        plain = config.copy_and_resolve_references()
    plain.transformer.model.remat, plain.transformer.loss.microbatches = "none", 1
    if plain.transformer == config.transformer:
        return counts.operations(traced.jaxpr)
    return counts.operations(programs.train_step(plain, program, mesh).jaxpr)


def _needed(message: str) -> float | None:
    """Bytes that the compiler says the program needs."""
    found = _NEEDED.search(message)
    if not found:
        return None
    number, unit = [part for part in found.groups() if part is not None]
    return float(number) * _UNITS[unit]


def estimate(result: dict, chip: chips.Chip, slices: int = 1) -> dict:
    """The least time that a step can take, from what each part of a chip must do.

    Operations over the peak; arguments read, outputs written and temporaries written
    and read once, over the memory's bandwidth; what collectives send, over that of the
    links. None is reached in practice and they overlap only in part, so the greatest is
    a lower bound, and the share of the peak that it leaves for the model's own
    operations is an upper bound of MFU. Between slices another network carries what is
    sent, and communication is not estimated.
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
    limit = max(seconds, key=seconds.get)
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
    """The report for people."""
    mesh = " x ".join(f"{name}={size}" for name, size in result["mesh"].items())
    lines = [
        f"{result['program']} on {result['topology']}: {result['chips']} chips, "
        f"{mesh}, batch {result['batch_size']}",
        f"operations   {result['operations']:.3e} a step, "
        f"{result['model_operations']:.3e} without recomputation",
    ]
    if "memory" not in result:
        needed = result["needed"]
        said = "more" if needed is None else f"{_size(needed)} or more"
        lines.append(f"DOES NOT FIT {said}, of {_size(result['hbm'])} a chip")
        return "\n".join(lines)
    if "fit" in result:
        fit = result["fit"]
        pieces = (
            f"; the config's {fit['batch_size_of_config']}: "
            f"transformer.grad_accum_steps={fit['grad_accum_steps']}"
            if "grad_accum_steps" in fit
            else ""
        ).replace("transformer", result["program"])
        lines.append(
            f"batch        {fit['examples_per_part']} for each part is the largest "
            f"power of two that fits{pieces}"
        )
    sizes = ", ".join(f"{k} {_size(v)}" for k, v in result["memory"].items())
    fits = "fits" if result["fits"] else "DOES NOT FIT"
    lines.append(f"memory       {sizes}; {fits} into {_size(result['hbm'])} a chip")
    for kind, found in result["collectives"].items():
        lines.append(
            f"{kind:12s} {found['count']} a step, data {_size(found['bytes'])}, "
            f"sent by each chip {_size(found['wire'])}"
        )
    flops, moved = result["xla"]["flops"], result["xla"]["bytes accessed"]
    if flops and moved:
        lines.append(
            f"XLA's count   {flops:.3e} operations, {_size(moved)} accessed a chip, "
            "loops once"
        )
    guess = result["estimate"]
    parts = ", ".join(f"{k} {1e3 * v:.2f} ms" for k, v in guess["seconds"].items())
    lines += [
        f"at the least {parts}: limited by {guess['limit']}",
        f"so at most   {guess['images_per_second']:.0f} images/s, "
        f"MFU {100 * guess['mfu_at_most']:.0f} %",
        f"compiled in  {result['compile_seconds']:.0f} s",
    ]
    return "\n".join(lines)
