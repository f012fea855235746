# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Compiles all released models for TPUs and GPUs; reports what fits and what limits it.

    python benchmarks/scale.py

Needs libtpu and JAX's CUDA plugin, but no TPU and no GPU. Compiles real train steps and
samplers with `rq aot`, about a minute each, and writes tables and a plot to
docs/scale.md. Reports that are in docs/scale.json are not compiled again, except with
`--fresh`; `--only imagenet:3.8B` selects runs, `--only gpu` those for GPUs.

The compiler for TPUs is asked for little optimisation effort. That takes a tenth of the
time and hardly changes memory and collectives. The runs in `CHECKED` are compiled both
ways to measure the difference.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib import metadata

import document
import numpy as np

from rq.aot import gpus
from rq.parallel import atomic_files

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "docs/scale.json"
DOCUMENT = ROOT / "docs/scale.md"
PLOT = ROOT / "docs/images/weak_scaling.png"
GIB = 2**30

MODELS = {  # number of parameters; lsun:bedroom has the model and batch of lsun:cat
    "imagenet:480M": 480_921_088,
    "imagenet:821M": 820_899_328,
    "imagenet:1.4B": 1_387_529_728,
    "imagenet:3.8B": 3_822_488_064,
    "cc3m": 654_061_568,
    "ffhq": 355_393_536,
    "lsun:church": 370_087_936,
    "lsun:cat": 612_061_184,
}
TOPOLOGIES = {"v5e:8x8": 64, "v6e:8x8": 64, "v5p:4x4x4": 64}
LARGER = {"v5e:16x16": 256, "v6e:16x16": 256, "v5p:4x4x8": 128}
LARGE = ("imagenet:1.4B", "imagenet:3.8B")
# With fsdp a sampler would gather all weights for each code, so samplers shard only the
# batch, or the batch and the heads.
SAMPLES_PER_CHIP = 32
SAMPLER_TENSOR = {"imagenet:3.8B": 4}

WEAK_MODEL, WEAK_BATCH = "imagenet:480M", 8  # examples per chip
# Only on small slices does the compiler turn gathers into rings within matrix products,
# which cannot be compared with the collectives on large slices.
WEAK_OPTIONS = ["--xla=xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000"]
WEAK = {"v5e:4x4": 16, "v5e:4x8": 32, "v5e:8x8": 64, "v5e:8x16": 128, "v5e:16x16": 256}
DIVISIONS = ("data", "fsdp")

MICROBATCHES, MICROBATCHES_TOPOLOGY = (1, 4, 16), "v5e:8x8"  # of the loss
TOO_SMALL = "imagenet:3.8B, v5e:2x2"
EFFORT = {"JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1"}
CHECKED = ("imagenet:1.4B, v5e:8x8, microbatches 1",)
FULL = ", full effort"
# Parameters are gathered within 32 chips, gradients summed over 8 such groups.
HYBRID = "imagenet:3.8B, v5e:16x16, fsdp 32"

# Runs for GPUs: "MODEL, TOPOLOGY, gpu train" and "MODEL, TOPOLOGY, gpu sample BATCH".
GPU_MODELS = ("imagenet:480M", "imagenet:1.4B", "imagenet:3.8B")
GPU_TRAIN, GPU_SAMPLE = "h100:8", "h100:1"
OTHER_GPUS, OTHER_MODEL = ("h200:1", "a100:1"), "imagenet:1.4B"
GPU_BATCHES = (1, 500)
POSITIONS = 64


def _flags(model: str, topology: str, *more: str) -> list[str]:
    file, _, variant = model.partition(":")
    config = f"configs/{file}.py" + (f":{variant}" if variant else "")
    chosen = [f"--config={config}", "--config.stages=transformer"]
    return [*chosen, f"--topology={topology}", *more]


def _mesh_flags(**sizes: int) -> list[str]:
    """Returns mesh flags; axes default to 1, `data` to the remaining devices."""
    sizes = {"data": -1, "fsdp": 1, "tensor": 1} | sizes
    return [f"--config.mesh.{name}={size}" for name, size in sizes.items()]


def _runs() -> dict[str, list[str]]:
    """Returns the flags of `rq.aot` for each run, by name."""
    runs = {
        TOO_SMALL: _flags("imagenet:3.8B", "v5e:2x2", *_mesh_flags(fsdp=4)),
        HYBRID: _flags("imagenet:3.8B", "v5e:16x16", *_mesh_flags(fsdp=32)),
    }
    for topology, chips in (TOPOLOGIES | LARGER).items():
        shard = _mesh_flags(fsdp=chips)
        for model in LARGE if topology in LARGER else MODELS:
            fit = [] if topology in LARGER else ["--batch=fit"]
            runs[f"{model}, {topology}"] = _flags(model, topology, *shard, *fit)
            if topology in TOPOLOGIES:
                tensor = SAMPLER_TENSOR.get(model, 1)
                size = SAMPLES_PER_CHIP * chips // tensor
                runs[f"{model}, {topology}, sample"] = _flags(
                    model, topology, "--program=sample",
                    f"--config.sampling.batch_size={size}", *_mesh_flags(tensor=tensor),
                )  # fmt: skip
    for model in LARGE:
        for number in MICROBATCHES:
            runs[f"{model}, {MICROBATCHES_TOPOLOGY}, microbatches {number}"] = _flags(
                model,
                MICROBATCHES_TOPOLOGY,
                f"--config.transformer.loss.microbatches={number}",
                *_mesh_flags(fsdp=TOPOLOGIES[MICROBATCHES_TOPOLOGY]),
            )  # fmt: skip
    for topology, chips in WEAK.items():
        size = f"--config.transformer.batch_size={WEAK_BATCH * chips}"
        for name in DIVISIONS:
            shard = _mesh_flags(**{name: chips})
            runs[f"weak, {topology}, {name}"] = _flags(
                WEAK_MODEL, topology, size, *shard, *WEAK_OPTIONS
            )
    for model in GPU_MODELS:
        shard = _mesh_flags(data=1, fsdp=-1)
        runs[f"{model}, {GPU_TRAIN}, gpu train"] = _flags(model, GPU_TRAIN, *shard)
        others = OTHER_GPUS if model == OTHER_MODEL else ()
        for topology in (GPU_SAMPLE, *others):
            for size in GPU_BATCHES:
                runs[f"{model}, {topology}, gpu sample {size}"] = _flags(
                    model, topology, "--program=sample",
                    f"--config.sampling.batch_size={size}", *_mesh_flags(),
                )  # fmt: skip
    return runs | {name + FULL: runs[name] for name in CHECKED}


RUNS = _runs()


def compile_one(name: str) -> dict:
    """Returns the report of a run, with its exit code as 'status'.

    Raises:
      RuntimeError: if the run writes no report.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "report.json"
        command = [sys.executable, "-m", "rq.aot", *RUNS[name], f"--out={out}"]
        on_gpus = ", gpu " in name
        effort = {} if on_gpus or name.endswith(FULL) else EFFORT
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | effort, capture_output=True, text=True
        )
        if not out.exists():
            raise RuntimeError(f"{name}: {(done.stdout + done.stderr)[-2000:]}")
        compiler = "jax-cuda12-plugin" if on_gpus else "libtpu"
        versions = {name: metadata.version(name) for name in ("jax", compiler)}
        report = json.loads(out.read_text())
        return report | {"status": done.returncode, "versions": versions}


def compile_all(names, jobs: int) -> None:
    """Compiles runs, `jobs` at a time, and saves each report as soon as it is there."""
    start = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(compile_one, name): name for name in names}
        for number, future in enumerate(as_completed(running), 1):
            name = running[future]
            write(read() | {name: future.result()})
            spent = time.monotonic() - start
            left = spent / number * (len(names) - number) / 60
            print(f"{number}/{len(names)} {name}: ETA {left:.0f} min", flush=True)


def read() -> dict[str, dict]:
    """Returns the reports so far, by name."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def write(reports: dict[str, dict]) -> None:
    """Writes all reports, atomically: they hold hours of compilation."""
    with atomic_files.atomic_write(RESULTS) as temporary:
        temporary.write_text(json.dumps(reports, indent=1) + "\n")


def _gib(number: float | None) -> str:
    return "?" if number is None else f"{number / GIB:,.1f}"


def _row(*cells) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _head(*cells) -> list[str]:
    return [_row(*cells), "|---" * len(cells) + "|"]


def _limits(report: dict) -> tuple[str, ...]:
    """Returns cells: milliseconds by bound, the limit in bold; images/s; MFU."""
    estimate = report["estimate"]
    cells = []
    for part in ("compute", "memory", "communication"):
        cell = f"{1e3 * estimate['seconds'][part]:,.0f}"
        cells.append(f"**{cell}**" if estimate["limit"] == part else cell)
    return (
        *cells,
        f"{estimate['images_per_second']:,.0f}",
        f"{100 * estimate['mfu_at_most']:.0f} %",
    )


def training_table(reports: dict[str, dict]) -> str:
    """Returns the table of all train steps with the largest batch that fits."""
    lines = _head(
        "model", "parameters", "slice", "paper's batch", "GiB per chip",
        "largest batch", "GiB per chip", "compute", "memory", "links", "images/s ≤",
        "MFU ≤",
    )  # fmt: skip
    for name, report in reports.items():
        model, topology, *rest = name.split(", ")
        if rest or topology not in TOPOLOGIES:
            continue
        fit = report["fit"]
        own, needed = fit["batch_size_of_config"], fit["needed"]
        first = max(1, own // report["chips"])
        lines.append(
            _row(
                model, f"{MODELS[model]:,}", topology, f"{own:,}",
                _gib(needed[str(first)]), f"{report['batch_size']:,}",
                _gib(report["memory"]["peak"]), *_limits(report),
            )
        )  # fmt: skip
    return "\n".join(lines)


def larger_table(reports: dict[str, dict]) -> str:
    """Returns the table of the large models on larger slices and on one too small."""
    lines = _head(
        "model", "slice", "chips", "mesh", "batch", "GiB per chip", "fits",
        "compute", "memory", "links", "images/s ≤", "MFU ≤", "exit code",
    )  # fmt: skip
    names = [f"{m}, {t}" for m in LARGE for t in LARGER] + [HYBRID, TOO_SMALL]
    for name in names:
        if name not in reports:
            continue
        report, (model, topology, *_) = reports[name], name.split(", ")
        peak = report["memory"]["peak"] if "memory" in report else report["needed"]
        limits = _limits(report) if "memory" in report else ("",) * 5
        fits = "yes" if report["fits"] else f"no: {_gib(report['hbm'])} GiB"
        lines.append(
            _row(
                model, topology, report["chips"], _mesh(report),
                f"{report['batch_size']:,}", _gib(peak), fits, *limits,
                report["status"],
            )
        )  # fmt: skip
    return "\n".join(lines)


def sampling_table(reports: dict[str, dict]) -> str:
    """Returns the table of the samplers."""
    lines = _head(
        "model", "slice", "mesh", "batch", "GiB per chip", "of",
        "FLOPs per image", "collectives by kind, GiB sent",
    )  # fmt: skip
    for name, report in reports.items():
        model, topology, *rest = name.split(", ")
        if rest != ["sample"]:
            continue
        needed = report["memory"]["peak"] if "memory" in report else report["needed"]
        lines.append(
            _row(
                model, topology, _mesh(report), f"{report['batch_size']:,}",
                _gib(needed), _gib(report["hbm"]),
                f"{report['operations'] / report['batch_size']:.2e}",
                _kinds(report, "wire"),
            )
        )  # fmt: skip
    return "\n".join(lines)


def microbatches_table(reports: dict[str, dict]) -> str:
    """Returns the table of memory by the number of microbatches of the loss."""
    lines = _head(
        "model", "slice", "batch", "microbatches", "GiB per chip", "temporaries, GiB"
    )
    for model in LARGE:
        for number in MICROBATCHES:
            name = f"{model}, {MICROBATCHES_TOPOLOGY}, microbatches {number}"
            report = reports.get(name)
            if report is not None:
                sizes = (report["memory"][name] for name in ("peak", "temporaries"))
                lines.append(
                    _row(
                        model, MICROBATCHES_TOPOLOGY, f"{report['batch_size']:,}",
                        number,
                        *(f"{size / GIB:.2f}" for size in sizes),
                    )
                )  # fmt: skip
    return "\n".join(lines)


def effort_table(reports: dict[str, dict]) -> str:
    """Returns the table of what the compiler's effort changes."""
    lines = _head(
        "program", "effort", "GiB per chip", "collectives by kind, GiB sent",
        "compile time",
    )  # fmt: skip
    for name in CHECKED:
        for run, effort in ((name, "little"), (name + FULL, "full")):
            if run in reports:
                report = reports[run]
                lines.append(
                    _row(
                        name, effort, f"{report['memory']['peak'] / GIB:.2f}",
                        _kinds(report, "wire"), f"{report['compile_seconds']:.0f} s",
                    )
                )  # fmt: skip
    return "\n".join(lines)


def _versions(report: dict) -> str:
    found = report.get("versions") or {n: report[n] for n in ("jax", "libtpu")}
    return ", ".join(f"{name} {version}" for name, version in found.items())


def gpu_training_table(reports: dict[str, dict]) -> str:
    """Returns the table of train steps on GPUs."""
    lines = _head(
        "model", "GPUs", "batch", "GiB per GPU", "of", "kernels", "launches",
        "collectives by kind, GiB sent", "compute", "memory", "links", "images/s ≤",
        "MFU ≤",
    )  # fmt: skip
    for name, report in reports.items():
        model, topology, *rest = name.split(", ")
        if rest != ["gpu train"]:
            continue
        step = report["kernels"]["step"]
        lines.append(
            _row(
                model, topology, f"{report['batch_size']:,}",
                _gib(report["memory"]["peak"]), _gib(report["hbm"]),
                f"{step['kernels']:,}", f"{step['launches']:,}",
                _kinds(report, "wire"), *_limits(report),
            )
        )  # fmt: skip
    return "\n".join(lines)


def gpu_sampling_table(reports: dict[str, dict]) -> str:
    """Returns the table of samplers on GPUs."""
    lines = _head(
        "model", "GPU", "batch", "GiB", "of", "kernels per position",
        "per step of the head", "launches per batch", "host waits", "cache copies",
        "compute", "weights", "ms per image ≥",
    )  # fmt: skip
    for name, report in reports.items():
        model, topology, *rest = name.split(", ")
        if not rest or not rest[0].startswith("gpu sample"):
            continue
        kernels, batch = report["kernels"], report["batch_size"]
        compute = report["estimate"]["seconds"]["compute"]
        bandwidth = gpus.GPUS[topology.partition(":")[0]].hbm_bandwidth
        weights = 2 * POSITIONS * MODELS[model] / bandwidth
        head = kernels["head_step"]
        lines.append(
            _row(
                model, topology, batch, _gib(report["memory"]["peak"]),
                _gib(report["hbm"]), f"{kernels['position']['kernels']:,}",
                f"{head['kernels']:,}" if head else "unrolled",
                f"{kernels['step']['launches']:,}",
                f"{kernels['step']['host_reads']:,}", kernels["cache_copies"],
                f"{1e3 * compute:,.0f}", f"{1e3 * weights:,.0f}",
                f"{1e3 * max(compute, weights) / batch:,.2f}",
            )
        )  # fmt: skip
    return "\n".join(lines)


def _mesh(report: dict) -> str:
    return ", ".join(f"{k} {v}" for k, v in report["mesh"].items() if v > 1)


def _kinds(report: dict, field: str, of: str = "collectives") -> str:
    """Returns, for example, '6 all-reduce 1.80, 12 all-gather 0.30'."""
    found = report.get(of, {})
    kinds = (f"{v['count']} {kind} {v[field] / GIB:.2f}" for kind, v in found.items())
    return ", ".join(kinds) or "none"


def traffic(report: dict, field: str, of: str = "partitioned") -> float:
    """Returns a field of all collectives, summed, in GiB per step."""
    return sum(kind[field] for kind in report[of].values()) / GIB


def weak_table(reports: dict[str, dict]) -> str:
    """Returns the table of weak scaling: more chips, the same batch per chip."""
    lines = _head(
        "chips", "batch", "mesh", "GiB per chip", "own part of the data, GiB",
        "whole data, GiB", "collectives by kind, GiB", "sent as compiled, GiB",
    )  # fmt: skip
    for division in DIVISIONS:
        for topology, chips in WEAK.items():
            report = reports.get(f"weak, {topology}, {division}")
            if report is None:
                continue
            lines.append(
                _row(
                    chips, report["batch_size"], f"{division} {chips}",
                    f"{report['memory']['peak'] / GIB:.2f}",
                    *(f"{traffic(report, field):.3f}" for field in ("held", "bytes")),
                    _kinds(report, "bytes", "partitioned"),
                    f"{traffic(report, 'wire', 'collectives'):.3f}",
                )
            )  # fmt: skip
    return "\n".join(lines)


def plot(reports: dict[str, dict]) -> np.ndarray:
    """Returns a plot of a chip's own data in collectives and memory, `[H, W, 3]`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), dpi=110, layout="tight")
    left, right = figure.subplots(1, 2)
    for division, color, marker in zip(
        DIVISIONS, ("#3b6ea5", "#c0504d"), "os", strict=True
    ):
        found = {
            chips: reports[name]
            for topology, chips in WEAK.items()
            if (name := f"weak, {topology}, {division}") in reports
        }
        style = {"color": color, "marker": marker, "label": division}
        held = [traffic(report, "held") for report in found.values()]
        left.plot(list(found), held, **style)
        peaks = [report["memory"]["peak"] / GIB for report in found.values()]
        right.plot(list(found), peaks, **style)
        if division == "fsdp" and held:
            first = next(iter(found))
            ideal = [held[0] * first / chips for chips in found]
            left.plot(list(found), ideal, ":", color="gray", label="1 / chips")
    left.set_ylabel("own part of the collectives' data\nGiB per chip and step")
    right.set_ylabel("peak memory, GiB per chip")
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        for which in (axis.xaxis, axis.yaxis):
            which.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_xlabel(f"chips, {WEAK_BATCH} images each")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def main() -> None:
    """Compiles missing runs and writes the tables and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="*", default=[""], help="substrings of run names"
    )
    parser.add_argument("--jobs", type=int, default=1, help="compilations at once")
    parser.add_argument("--fresh", action="store_true", help="compile all again")
    parser.add_argument("--report", action="store_true", help="compile nothing")
    given = parser.parse_args()
    chosen = [name for name in RUNS if any(part in name for part in given.only)]
    if given.fresh:
        kept = {name: found for name, found in read().items() if name not in chosen}
        write(kept)
    missing = [name for name in chosen if name not in read()]
    if not given.report:
        compile_all(missing, given.jobs)
    found = read()
    reports = {name: found[name] for name in RUNS if name in found}
    for name, table in (
        ("training", training_table),
        ("larger", larger_table),
        ("microbatches", microbatches_table),
        ("sampling", sampling_table),
        ("weak", weak_table),
        ("effort", effort_table),
        ("gpu training", gpu_training_table),
        ("gpu sampling", gpu_sampling_table),
    ):
        document.insert(DOCUMENT, name, table(reports))
    known = sorted({_versions(report) for report in reports.values()})
    document.insert(DOCUMENT, "versions", f"Compiled by {'; '.join(known)}.")
    from rq.visualize import save_png

    save_png(PLOT, plot(reports))
    print(json.dumps({"runs": len(reports), "missing": len(RUNS) - len(reports)}))


if __name__ == "__main__":
    main()
