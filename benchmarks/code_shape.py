# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares shapes of codes on emoji: grid, depth, codebook size and resolution.

    python benchmarks/code_shape.py --workdir=runs/code_shape

Trains both stages at 32, 64 and 128 pixels with codes of 4 x 4, 8 x 8 and 16 x 16
positions, several depths and codebook sizes: all with the same steps, batches and
learning rates, and networks that differ in the levels of stage 1 alone. Measures the
bits of an image, PSNR, rFID and gFID on the features of one classifier for each
resolution; and then, one row after another, how many images a second are sampled.
Finished rows are kept, interrupted ones resume; `--quick` trains four rows,
`--resolutions` those of some, `--rows` those that it names, and `--report` none: with
several cores, or on a large GPU, start several processes with `--rows`, and report when
they have ended. Writes a table to docs/results.md, with the best shapes by budget,
unless `--rows` is given, which measures no speed. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import pathlib
import time
from typing import NamedTuple

import document

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "docs/results.md"
RESOLUTIONS, GRIDS = (32, 64, 128), (4, 8, 16)
BUDGETS = (512, 1024, 2048, 4096, 8192)  # bits an image, at most
BATCH = 50  # images that are sampled at once


class Shape(NamedTuple):
    """A row: `resolution` pixels in `grid` x `grid` x `depth` codes of `num_codes`."""

    resolution: int
    grid: int
    depth: int
    num_codes: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return "_".join(map(str, self))

    @property
    def bits(self) -> float:
        """Bits of an image, without entropy coding."""
        return self.grid**2 * self.depth * math.log2(self.num_codes)


# A grid of 16 has four times the positions of one of 8: so the same bits are a quarter
# of the depth. The last of each has more codes in place of depth.
SHAPES = tuple(
    Shape(resolution, grid, depth, num_codes)
    for resolution in RESOLUTIONS
    for grid, options in {
        4: ((4, 256), (8, 256), (16, 256), (4, 1024)),
        8: ((1, 256), (2, 256), (4, 256), (8, 256), (2, 1024)),
        16: ((1, 256), (2, 256), (4, 256), (1, 1024)),
    }.items()
    for depth, num_codes in options
    if grid <= resolution // 2
)
QUICK = tuple(
    Shape(32, *rest) for rest in ((4, 4, 256), (4, 16, 256), (8, 1, 256), (8, 4, 256))
)


def make_config(shape: Shape, steps: int, seed: int = 0, stage: str = ""):
    """Returns the config of a row; of its resolution's classifier alone if `stage`."""
    from rq.config import default

    config = default()
    levels = int(math.log2(shape.resolution // shape.grid)) + 1
    config.update_from_flattened_dict(
        {
            "seed": seed,
            "stages": (stage,) if stage else ("rqvae", "codes", "transformer"),
            "data.name": "emoji",
            "data.resolution": shape.resolution,
            "data.augment": "center",
            "data.num_classes": 9,
            "features.batch_size": 32,
            "features.steps": 300,
            "features.model.widths": (16, 32, 64),
            "features.model.convs": (1, 1, 1),
            "rqvae.batch_size": 16,
            "rqvae.steps": steps,
            "rqvae.model.ch": 32,
            # The widest level is 128 channels, whatever their number.
            "rqvae.model.ch_mult": ((1, 1, 2, 4, 4, 4)[: levels - 1] + (4,))[-levels:],
            "rqvae.model.num_res_blocks": 1,
            "rqvae.model.attn_resolutions": (),
            "rqvae.model.z_channels": 64,
            "rqvae.model.embed_dim": 64,
            "rqvae.model.code_shape": (shape.grid, shape.grid, shape.depth),
            "rqvae.model.num_codes": (shape.num_codes,),
            "rqvae.loss.perceptual": "none",
            "rqvae.adversarial.weight": 0.0,
            "rqvae.optimizer.learning_rate": 1e-3,
            "rqvae.optimizer.warmup_steps": min(50, steps),
            "rqvae.optimizer.min_learning_rate": 0.0,
            "transformer.batch_size": 16,
            "transformer.steps": steps,
            "transformer.condition": "class",
            "transformer.model.width": 192,
            "transformer.model.body.layers": 4,
            "transformer.model.body.heads": 6,
            "transformer.model.body.residual_dropout": 0.0,
            "transformer.model.head.layers": 1,
            "transformer.model.head.heads": 6,
            "transformer.model.head.residual_dropout": 0.0,
            "transformer.loss.temperature": 0.02,
            "transformer.optimizer.learning_rate": 1e-3,
            "transformer.optimizer.warmup_steps": min(50, steps),
            "sampling.top_p": (0.9,),
            "checkpoint.every": 200,
            "checkpoint.keep": 1,
            "log.eval_every": 10_000,
        }
    )
    return config


def measure(shape: Shape, workdir: pathlib.Path, steps: int, samples: int) -> dict:
    """Trains and measures the quality of one row, unless finished; returns its result.

    Args:
      shape: the row.
      workdir: where rows and classifiers are.
      steps: of each stage.
      samples: number of generated images.
    """
    from rq.cli.train import run_stages
    from rq.config import validate
    from rq.evaluation import extractors, feature_sets, references, trained_stages
    from rq.experiment import Experiment
    from rq.parallel import atomic_files
    from rq.visualize import to_uint8

    path = workdir / f"{steps}_steps" / shape.name
    file = path / "result.json"
    if file.exists():
        return json.loads(file.read_text())
    workdir.mkdir(parents=True, exist_ok=True)
    classifier = workdir / f"classifier_{shape.resolution}"
    # The same for all rows, whatever their codes and steps.
    same = make_config(Shape(shape.resolution, 4, 4, 256), 300, stage="features")
    with classifier.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may train it
        run_stages(same, classifier)
    config = make_config(shape, steps)
    validate(config)
    start = time.monotonic()
    run_stages(config, path)
    trained = time.monotonic() - start
    experiment = Experiment(path)
    extractor = extractors.of_experiment(Experiment(classifier))
    rqvae = trained_stages.TrainedRQVAE(experiment)
    metrics = rqvae.metrics(extractor=extractor)
    images = sample(experiment, samples)
    real, _ = references.find_reference(experiment, extractor, "eval")
    batches = (
        extractor(to_uint8(images[i : i + BATCH])) for i in range(0, len(images), BATCH)
    )
    made = feature_sets.collect(batches, samples)
    found = feature_sets.metrics(made, real, extractor.label)
    label = f"({extractor.label})"
    stored = json.loads((path / "samples/evaluation.json").read_text())
    result = {
        "shape": shape._asdict(),
        "bits": shape.bits,
        "steps": steps,
        "samples": samples,
        "psnr": metrics[f"psnr/depth_{shape.depth}"],
        "rfid": metrics[f"rFID {label}/depth_{shape.depth}"],
        "gfid": found[f"FID {label}"],
        "model_bits": stored["transformer/bits_per_image"],
        "train_seconds": trained,
    }
    atomic_files.write_json(file, result)
    return result


def measure_speed(
    shape: Shape, workdir: pathlib.Path, steps: int, samples: int
) -> dict:
    """Returns images a second of a trained row and on which device, unless it is known.

    Nothing else should run on the device.
    """
    import jax

    from rq.experiment import Experiment
    from rq.parallel import atomic_files

    path = workdir / f"{steps}_steps" / shape.name
    file = path / "speed.json"
    if file.exists():
        return json.loads(file.read_text())
    experiment = Experiment(path)
    sample(experiment, BATCH)  # compiles
    start = time.monotonic()
    sample(experiment, samples)
    found = {
        "images_per_second": samples / (time.monotonic() - start),
        "device": jax.devices()[0].device_kind,
    }
    atomic_files.write_json(file, found)
    return found


def sample(experiment, number: int):
    """Returns images `[N, R, R, C]` in [-1, 1], the same number of each class."""
    from rq.config import SamplingConfig
    from rq.sampling import conditions

    config = experiment.config
    asked = conditions.parse(config, None)
    options = SamplingConfig(**config.sampling).replace(batch_size=BATCH)
    _, cond = asked.at(asked.spread(number))
    return experiment.sampler.sample(cond, number, options).images


def best(results: list[dict], budget: float, name: str) -> dict | None:
    """Returns the row with the lowest `name` of at most `budget` bits; None: none."""
    within = [r for r in results if r["bits"] <= budget]
    return min(within, key=lambda r: r[name], default=None)


def text(shape: dict) -> str:
    """Returns a shape for people."""
    grid, depth = shape["grid"], shape["depth"]
    return f"{grid} × {grid} × {depth}, K = {shape['num_codes']:,}"


def tables(results: list[dict]) -> str:
    """Returns Markdown tables: all rows, and the best shapes by budget."""
    lines = [
        "| pixels | codes | bits | PSNR | rFID | gFID | model's bits | images/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in sorted(results, key=lambda r: (r["shape"]["resolution"], r["bits"])):
        lines.append(
            f"| {r['shape']['resolution']} | {text(r['shape'])} | {r['bits']:,.0f} | "
            f"{r['psnr']:.2f} dB | {r['rfid']:.2f} | {r['gfid']:.2f} | "
            f"{r['model_bits']:,.0f} | {r['images_per_second']:.1f} |"
        )
    lines += [
        "",
        "| pixels | bits, at most | lowest rFID | lowest gFID |",
        "|---" * 4 + "|",
    ]
    for resolution in RESOLUTIONS:
        rows = [r for r in results if r["shape"]["resolution"] == resolution]
        for budget in BUDGETS:
            found = [best(rows, budget, name) for name in ("rfid", "gfid")]
            if any(budget / 2 < r["bits"] <= budget for r in rows):
                names = " | ".join(text(r["shape"]) for r in found if r)
                lines.append(f"| {resolution} | {budget:,} | {names} |")
    return "\n".join(lines)


def main() -> None:
    """Trains the rows that are asked for and writes the tables of the finished ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=1000, help="of each stage")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--quick", action="store_true", help="four rows at 32 pixels")
    parser.add_argument(
        "--resolutions", type=int, nargs="*", choices=RESOLUTIONS, default=RESOLUTIONS
    )
    names = {shape.name: shape for shape in SHAPES}
    parser.add_argument(
        "--rows",
        nargs="*",
        choices=names,
        metavar="PIXELS_GRID_DEPTH_CODES",
        help="as 32_8_4_256",
    )
    parser.add_argument("--report", action="store_true", help="train nothing")
    given = parser.parse_args()

    from rq.cli import compilation_cache, log_output

    log_output.start(debug=False)
    compilation_cache.enable()
    workdir = given.workdir.absolute()
    wanted = QUICK if given.quick else SHAPES
    if given.rows:
        wanted = [names[row] for row in given.rows]
    wanted = [shape for shape in wanted if shape.resolution in given.resolutions]
    results = []
    for shape in wanted:
        folder = workdir / f"{given.steps}_steps" / shape.name
        if given.report and not (folder / "result.json").exists():
            continue
        results.append(measure(shape, workdir, given.steps, given.samples))
        print(json.dumps(results[-1]), flush=True)
    if not results:
        parser.error("no row is finished: leave out --report")
    if not given.rows:
        for result in results:
            shape = Shape(**result["shape"])
            result |= measure_speed(shape, workdir, given.steps, given.samples)
        document.insert(RESULTS, "code_shape", tables(results))
        print(tables(results))
    rows = [Shape(**r["shape"]).name for r in results]
    named = dict(zip(rows, results, strict=True))
    print(json.dumps({name: r | {"shape": name} for name, r in named.items()}))


if __name__ == "__main__":
    main()
