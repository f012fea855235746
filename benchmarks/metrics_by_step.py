# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measures whether metrics improve with training and rank images as people would.

    python benchmarks/metrics_by_step.py --workdir=runs/digits --guidance=1.5,2,3

Compares with the training images, in the features of the experiment's own network:
samples of every stage 2 checkpoint that was kept (`checkpoint.keep_every`), samples of
the last one with guidance, noise, and real unseen images. Classes have the frequencies
of the training images. Metrics depend on the number of images, so all columns except
the last FID use as many as there are unseen ones.

Saves the first samples of each row in WORKDIR/eval/by_step.png; with `--document` also
writes its table to docs/results.md. The last line is one JSON object. The exit code is
1 unless the Fréchet distance ranks: real images, the best of the last checkpoint, the
first checkpoint, noise.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

import document
import numpy as np

from rq import visualize
from rq.config import SamplingConfig
from rq.data import loader, sources
from rq.evaluation import extractors, feature_sets, references, sample_job
from rq.evaluation.image_files import ImageSet
from rq.experiment import Experiment
from rq.metrics import moments

ROOT = pathlib.Path(__file__).parent.parent
SHOWN = 12  # samples in each row of the picture
GUIDANCE = ", guidance "  # in a row's name, between step and scale
COLUMNS = {  # metrics in the table and their formats
    "FID": ".2f",
    "precision": ".3f",
    "recall": ".3f",
    "density": ".3f",
    "coverage": ".3f",
    "IS": ".2f",
}


def steps(path: pathlib.Path) -> list[int]:
    """Returns the steps of all stage 2 checkpoints, in order."""
    names = [p.name for p in (path / "transformer").iterdir() if p.is_dir()]
    return sorted(int(name) for name in names if name.isdigit())


def labels_like(experiment, number: int) -> tuple[int, ...]:
    """Returns classes of random training images; () if the model has no classes."""
    config = experiment.config
    if config.transformer.condition != "class":
        return ()
    source = experiment.code_source(config.data.train_split)
    chosen = np.random.default_rng(0).integers(len(source), size=number)
    return tuple(int(source[int(i)]["label"]) for i in chosen)


def first(found: feature_sets.FeatureSet, number: int) -> feature_sets.FeatureSet:
    """Returns the features of the first `number` images."""
    pool, logits = found.pool[:number], found.logits[:number]
    return feature_sets.FeatureSet(moments.of(pool), None, pool, logits)


def row(name: str, found, real, extractor, number: int, all_images: int) -> dict:
    """Returns a table row: metrics of the first images, and FID and KID of all."""
    label = f" ({extractor.label})"
    few = feature_sets.metrics(first(found, number), real, extractor.label)
    values = {key: few[f"{key}{label}"] for key in COLUMNS}
    whole = feature_sets.metrics(found, real, extractor.label)
    return {"name": name, "images": all_images, "FID of all": whole[f"FID{label}"]} | (
        values | {"KID of all": whole.get(f"KID{label}")}
    )


def measure_all(path: pathlib.Path, number: int, guidance: list[float]):
    """Returns table rows, picture rows, the number of unseen images, and a label."""
    experiment = Experiment(path)
    config, extractor = experiment.config, extractors.of_experiment(experiment)
    real, origin = references.find_reference(experiment, extractor, "train")
    source = sources.open_split(config.data, config.data.eval_split)
    batches = loader.in_order(source, config.data, feature_sets.BATCH)
    unseen, batches = len(source), [b["image"][b["mask"]] for b in batches]
    classes = labels_like(experiment, number)
    rows, shown = [], []

    def add(name, images, found):
        rows.append(row(name, found, real, extractor, unseen, len(found.pool)))
        shown.append((name, images))
        print(rows[-1], flush=True)

    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, batch.shape, np.uint8) for batch in batches]
    add("noise", noise[0][:SHOWN], feature_sets.collect(map(extractor, noise)))
    last = steps(path)[-1]
    runs = [(step, None) for step in steps(path)]
    runs += [(last, scale) for scale in guidance]
    for step, scale in runs:
        options = SamplingConfig(**config.sampling).replace(guidance=scale)
        some = Experiment(path, step=step)
        task = sample_job.Job(some, number, options, classes=classes)
        task.run(extractor, real, "train", origin)
        name = f"step {step:,}" + ("" if scale is None else f"{GUIDANCE}{scale:g}")
        samples = ImageSet(task.folder / sample_job.SAMPLES)
        add(name, next(samples.batches(SHOWN)), task.features(extractor))
    add(
        "real, unseen",
        batches[0][:SHOWN],
        feature_sets.collect(map(extractor, batches)),
    )
    return rows, shown, unseen, extractor.label


def table(rows: list[dict], unseen: int, label: str) -> str:
    """Returns the table in Markdown; FID is always qualified by the features."""
    names = [f"{key} ({label})" if key == "FID" else key for key in COLUMNS]
    heads = [f"of {unseen} images each", *names, f"FID ({label}) of all", "images"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for one in rows:
        cells = [format(one[key], form) for key, form in COLUMNS.items()]
        cells += [f"{one['FID of all']:.2f}", f"{one['images']:,}"]
        lines.append(f"| {one['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def out_of_order(rows: list[dict]) -> list[str]:
    """Returns a line for each pair that the Fréchet distance ranks the wrong way."""
    trained = [one for one in rows if one["name"].startswith("step")]
    last = trained[-1]["name"].split(GUIDANCE)[0]
    final = [one for one in trained if one["name"].split(GUIDANCE)[0] == last]
    best = min(final, key=lambda one: one["FID"])
    order = [rows[-1], best, trained[0], rows[0]]
    return [
        f"{a['name']} at {a['FID']:.2f} is not below {b['name']} at {b['FID']:.2f}"
        for a, b in zip(order, order[1:], strict=False)
        if a["FID"] >= b["FID"]
    ]


def main() -> int:
    """Measures, saves and prints; returns exit code 1 if the ranking is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--num_samples", type=int, default=5000)
    parser.add_argument("--guidance", default="", help="comma-separated scales")
    parser.add_argument("--document", action="store_true", help="write the table")
    given = parser.parse_args()
    scales = [float(scale) for scale in given.guidance.split(",") if scale]
    rows, shown, unseen, label = measure_all(given.workdir, given.num_samples, scales)
    picture = visualize.sample_grid(
        np.concatenate([images for _, images in shown]),
        SHOWN,
        [name for name, _ in shown],
    )
    visualize.save_png(given.workdir / "eval" / "by_step.png", picture)
    config = Experiment(given.workdir).config
    if given.document:
        name = f"{config.data.name.split('/')[0]}_by_step"
        document.insert(ROOT / "docs/results.md", name, table(rows, unseen, label))
    print(table(rows, unseen, label))
    wrong = out_of_order(rows)
    for line in wrong:
        print(f"out of order: {line}", file=sys.stderr)
    found = {"features": label, "rows": rows, "wrong": wrong}
    print(json.dumps({"benchmark": "metrics_by_step"} | found))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
