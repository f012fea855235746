# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares more depth with a larger codebook: the paper's central claim at small scale.

    python benchmarks/rate_distortion.py --workdir=runs/rate_distortion

Trains RQ-VAEs on emoji (32 x 32, 8 x 8 positions), each for the same number of steps on
the same images: depth D from 1 to 16 with K = 256 codes, plain VQ (D = 1) with K up to
16,384, and the variants of the quantizer at D = 4. Writes a table and a plot of
distortion against bits per image to docs/results.md. Finished runs are kept,
interrupted ones resume. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import document
import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "docs/results.md"
PLOT = ROOT / "docs/images/rate_distortion.png"
SIDE = 8  # rows and columns of codes
CODES = 256


def _model(depth: int = 4, num_codes: int = CODES, **changes) -> dict:
    model = {"code_shape": (SIDE, SIDE, depth), "num_codes": (num_codes,)}
    return {f"rqvae.model.{name}": v for name, v in (model | changes).items()}


DEPTHS = {f"D={d}, K={CODES}": _model(d) for d in (1, 2, 4, 8, 16)}
PLAIN = {f"D=1, K={k}": _model(1, k) for k in (CODES, 1024, 4096, 16384)}
OWN = {"shared_codebook": False}
VARIANTS = {
    "residual (paper)": _model(),
    "a codebook for each depth": _model(**OWN),
    "cosine codes": _model(**OWN, cosine=True),
    "rotation trick": _model(gradient="rotation"),
    "entropy regularisation": _model()
    | {"rqvae.loss.entropy_weight": 0.02, "rqvae.loss.entropy_temperature": 1.0},
    "depth dropout": _model(depth_dropout=0.5),
    "residual FSQ": _model(**OWN, fsq_levels=(8, 8, 4), embed_dim=3),
}
RUNS = DEPTHS | PLAIN | VARIANTS
SAME = {"residual (paper)": f"D=4, K={CODES}"}  # one run under two names


def make_config(name: str, steps: int, seed: int):
    """Returns the config of a run."""
    from rq.config import default

    config = default()
    changes = {
        "seed": seed,
        "stages": ("rqvae",),
        "data.name": "emoji",
        "data.resolution": 32,
        "data.augment": "center",
        "rqvae.batch_size": 16,
        "rqvae.steps": steps,
        "rqvae.model.ch": 32,
        "rqvae.model.ch_mult": (1, 1, 2),
        "rqvae.model.num_res_blocks": 1,
        "rqvae.model.attn_resolutions": (),
        "rqvae.model.z_channels": 64,
        "rqvae.model.embed_dim": 64,
        "rqvae.loss.perceptual": "none",
        "rqvae.adversarial.weight": 0.0,
        "rqvae.optimizer.learning_rate": 1e-3,
        "rqvae.optimizer.warmup_steps": min(50, steps),
        "rqvae.optimizer.min_learning_rate": 0.0,
        "checkpoint.every": 100,
        "checkpoint.keep": 1,
        "log.eval_every": max(steps, 1),
    }
    config.update_from_flattened_dict(changes | RUNS[name])
    return config


def folder_name(name: str) -> str:
    """Returns the name of a run's folder."""
    return re.sub(r"\W+", "_", name).strip("_").lower()


def train(name: str, workdir: pathlib.Path, steps: int, seed: int) -> None:
    """Trains and measures one run in this process, and writes its `result.json`."""
    # Imported here, because training imports TensorFlow and reporting needs none.
    from rq.cli import log_output
    from rq.cli.train import run_stages
    from rq.config import validate
    from rq.evaluation import trained_stages
    from rq.experiment import Experiment
    from rq.parallel import atomic_files

    log_output.start(debug=False)
    config = make_config(name, steps, seed)
    validate(config)
    path = workdir / folder_name(name)
    start = time.monotonic()
    run_stages(config, path)
    seconds = time.monotonic() - start
    metrics = trained_stages.evaluate(Experiment(path))
    model = config.rqvae.model
    result = {
        "name": name,
        "depth": model.code_shape[2],
        "num_codes": model.num_codes[0],
        "bits": bits_per_image(model.code_shape, model.num_codes),
        "steps": steps,
        "seconds": round(seconds, 1),
        "metrics": {k.removeprefix("rqvae/"): v for k, v in metrics.items()},
    }
    atomic_files.write_json(path / "result.json", result)


def bits_per_image(code_shape, num_codes) -> float:
    """Returns the bits of an image's codes, without entropy coding."""
    rows, columns, depth = code_shape
    sizes = tuple(num_codes) * (depth // len(num_codes))
    return rows * columns * sum(math.log2(size) for size in sizes)


def run_all(names, workdir: pathlib.Path, steps: int, seed: int, jobs: int) -> None:
    """Trains unfinished runs, `jobs` at a time, each on its own part of the cores."""
    waiting = [
        n for n in names if not (workdir / folder_name(n) / "result.json").exists()
    ]
    workdir.mkdir(parents=True, exist_ok=True)
    cores = sorted(os.sched_getaffinity(0))
    free = [cores[i::jobs] or cores for i in range(jobs)]
    start, done = time.monotonic(), []

    def one(name):
        own_cores = free.pop()
        command = [sys.executable, __file__, f"--run={name}", f"--workdir={workdir}"]
        command += [f"--steps={steps}", f"--seed={seed}"]
        log = workdir / f"{folder_name(name)}.log"
        with log.open("a") as stream:
            status = subprocess.run(
                command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                preexec_fn=lambda: os.sched_setaffinity(0, own_cores),
            ).returncode
        free.append(own_cores)
        if status:
            raise RuntimeError(f"{name} failed; see {log}")
        done.append(name)
        spent = time.monotonic() - start
        left = spent / len(done) * (len(waiting) - len(done))
        print(f"{len(done)}/{len(waiting)} {name}: ETA {left / 60:.0f} min", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        for _ in pool.map(one, waiting):
            pass


def read(workdir: pathlib.Path) -> dict[str, dict]:
    """Returns the results of the finished runs, by name."""
    found = {}
    for name in RUNS:
        file = workdir / folder_name(SAME.get(name, name)) / "result.json"
        if file.exists():
            found[name] = json.loads(file.read_text())
    return found


def at_depth(result: dict, metric: str, depth: int | None = None) -> float:
    """Returns a metric of a run at a depth, by default the last."""
    return result["metrics"][f"{metric}/depth_{depth or result['depth']}"]


def tables(results: dict[str, dict]) -> str:
    """Returns two Markdown tables: depth against codebook size, and the variants."""
    lines = [
        "| quantizer | bits per image | MSE | PSNR | SSIM | codes used |",
        "|---|---|---|---|---|---|",
    ]
    for name in DEPTHS | PLAIN:
        if name in results:
            r = results[name]
            lines.append(
                f"| {name} | {r['bits']:,.0f} | {at_depth(r, 'mse'):.4f} | "
                f"{at_depth(r, 'psnr'):.2f} dB | {at_depth(r, 'ssim'):.3f} | "
                f"{100 * r['metrics']['usage/all']:.0f} % |"
            )
    depths = range(1, 5)
    lines += [
        "",
        f"| variant, D = 4, K = {CODES} | "
        + " | ".join(f"PSNR, depth {d}" for d in depths)
        + " | SSIM | perplexity, depth 1 | codes used |",
        "|---" * 8 + "|",
    ]
    for name in VARIANTS:
        if name in results:
            r = results[name]
            scores = [f"{at_depth(r, 'psnr', d):.2f}" for d in depths]
            lines.append(
                f"| {name} | {' | '.join(scores)} | {at_depth(r, 'ssim'):.3f} | "
                f"{at_depth(r, 'perplexity', 1):.0f} | "
                f"{100 * r['metrics']['usage/all']:.0f} % |"
            )
    return "\n".join(lines)


def plot(results: dict[str, dict]) -> np.ndarray:
    """Returns a plot of PSNR against bits per image, uint8 `[H, W, 3]`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.4), dpi=110, layout="tight")
    axis = figure.subplots()
    for names, label, letter, color, marker in (
        (DEPTHS, f"more depth, K = {CODES}", "depth", "#3b6ea5", "o"),
        (PLAIN, "plain VQ, more codes", "num_codes", "#c0504d", "s"),
    ):
        points = [results[name] for name in names if name in results]
        x = [r["bits"] for r in points]
        y = [at_depth(r, "psnr") for r in points]
        axis.plot(x, y, color=color, marker=marker, label=label)
        below = letter == "num_codes"
        for r, bits, score in zip(points, x, y, strict=True):
            text = f"{'K' if below else 'D'} = {r[letter]:,}"
            last = below and r is points[-1]  # below it there is no room
            offset = (8, -3) if last else (0, -14) if below else (0, 8)
            axis.annotate(text, (bits, score), offset, textcoords="offset points",
                          ha="left" if last else "center", fontsize=9,
                          color=color)  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.margins(0.08, 0.15)
    axis.set_xlabel("bits per image")
    axis.set_ylabel("PSNR on validation emoji (dB)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, loc="upper left")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def main() -> None:
    """Trains all runs, or one, and writes the tables and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="runs trained at once")
    parser.add_argument("--only", nargs="*", choices=RUNS, help="some of the runs")
    parser.add_argument("--run", choices=RUNS, help="one run, in this process")
    parser.add_argument("--report", action="store_true", help="train nothing")
    given = parser.parse_args()
    workdir = given.workdir.absolute()
    if given.run:
        train(given.run, workdir, given.steps, given.seed)
        return
    names = dict.fromkeys(SAME.get(name, name) for name in given.only or RUNS)
    if not given.report:
        run_all(names, workdir, given.steps, given.seed, given.jobs)
    results = read(workdir)
    print(tables(results))
    if given.report or not given.only:
        from rq.visualize import save_png

        document.insert(RESULTS, "rate_distortion", tables(results))
        save_png(PLOT, plot(results))
        print(f"wrote {RESULTS} and {PLOT}")
    print(json.dumps({n: round(at_depth(r, "psnr"), 2) for n, r in results.items()}))


if __name__ == "__main__":
    main()
