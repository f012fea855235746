# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Do metrics improve with training, and rank what people would rank?

    python benchmarks/metrics_by_step.py --workdir=runs/digits --guidance=1.5,2,3

Samples of every checkpoint of stage 2 that was kept (`checkpoint.keep_every`), with
guidance too those of the last, measured by `rq.evaluation.sample_job` in the features
of the experiment's own network against its training images; beside them real unseen
images and noise. Metrics depend on how many images there are, so all but one column are
of as many as there are unseen ones. Classes are drawn as often as in the training
images.

Writes a table to docs/results.md with `--document`, and a picture, WORKDIR/eval/
by_step.png, with the first samples of each row. Exits with 1 where real images, the
best of the last checkpoint, the first checkpoint and noise do not rank in this order.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

import document
import numpy as np

from rq import visualize
from rq.data import loader, sources
from rq.evaluation import extractors, feature_sets, references, sample_job
from rq.evaluation.image_files import ImageSet
from rq.experiment import Experiment
from rq.metrics import moments

ROOT = pathlib.Path(__file__).parent.parent
SHOWN = 12  # samples of each row of the picture
GUIDANCE = ", guidance "  # between a step and a scale
COLUMNS = {  # of the table: name of a metric, and how it is written
    "FID": ".2f",
    "precision": ".3f",
    "recall": ".3f",
    "density": ".3f",
    "coverage": ".3f",
    "IS": ".2f",
}


def steps(path: pathlib.Path) -> list[int]:
    """Of all checkpoints of stage 2."""
    names = [p.name for p in (path / "transformer").iterdir() if p.is_dir()]
    return sorted(int(name) for name in names if name.isdigit())


def labels_like(experiment, number: int) -> tuple[int, ...]:
    """Classes of training images drawn at random; () where the model has none."""
    config = experiment.config
    if config.transformer.condition != "class":
        return ()
    source = experiment.code_source(config.data.train_split)
    chosen = np.random.default_rng(0).integers(len(source), size=number)
    return tuple(int(source[int(i)]["label"]) for i in chosen)


def first(found: feature_sets.FeatureSet, number: int) -> feature_sets.FeatureSet:
    """Of the first images alone."""
    pool, logits = found.pool[:number], found.logits[:number]
    return feature_sets.FeatureSet(moments.of(pool), None, pool, logits)


def of_batches(extractor, batches) -> feature_sets.FeatureSet:
    """Features of images that are at hand."""
    collector = feature_sets.Collector()
    collector.add_all(map(extractor, batches))
    return collector.result()


def row(name: str, found, real, extractor, number: int, all_images: int) -> dict:
    """Metrics of the first images, and the distance of all."""
    label = f" ({extractor.label})"
    few = feature_sets.metrics(first(found, number), real, extractor.label)
    values = {key: few[f"{key}{label}"] for key in COLUMNS}
    whole = feature_sets.metrics(found, real, extractor.label)
    return {"name": name, "images": all_images, "FID of all": whole[f"FID{label}"]} | (
        values | {"KID of all": whole.get(f"KID{label}")}
    )


def measure_all(path: pathlib.Path, number: int, guidance: list[float]):
    """Rows of the table, and (name, first images) of the picture's."""
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
    add("noise", noise[0][:SHOWN], of_batches(extractor, noise))
    last = steps(path)[-1]
    ways = [(step, None) for step in steps(path)]
    ways += [(last, scale) for scale in guidance]
    for step, scale in ways:
        changes = {} if scale is None else {"guidance": (scale,)}
        some = Experiment(path, step=step)
        task = sample_job.Job(some, number, classes=classes, **changes)
        task.run(extractor, real, "train", origin)
        name = f"step {step:,}" + ("" if scale is None else f"{GUIDANCE}{scale:g}")
        samples = ImageSet(task.folder / sample_job.SAMPLES)
        add(name, next(samples.batches(SHOWN)), task.features(extractor))
    add("real, unseen", batches[0][:SHOWN], of_batches(extractor, batches))
    return rows, shown, unseen, extractor.label


def table(rows: list[dict], unseen: int, label: str) -> str:
    """Markdown; a distance in such features is never called FID alone."""
    names = [f"{key} ({label})" if key == "FID" else key for key in COLUMNS]
    heads = [f"of {unseen} images each", *names, f"FID ({label}) of all", "images"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for one in rows:
        cells = [format(one[key], form) for key, form in COLUMNS.items()]
        cells += [f"{one['FID of all']:.2f}", f"{one['images']:,}"]
        lines.append(f"| {one['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def out_of_order(rows: list[dict]) -> list[str]:
    """A line for each pair that the Frechet distance ranks against all expectation."""
    trained = [one for one in rows if one["name"].startswith("step")]
    last = trained[-1]["name"].split(GUIDANCE)[0]
    final = [one for one in trained if one["name"].split(GUIDANCE)[0] == last]
    best = min(final, key=lambda one: one["FID"])
    order = [rows[-1], best, trained[0], rows[0]]
    return [
        f"{a['name']} at {a['FID']:.2f} is not before {b['name']} at {b['FID']:.2f}"
        for a, b in zip(order, order[1:], strict=False)
        if a["FID"] >= b["FID"]
    ]


def main() -> int:
    """Measures, draws, prints one JSON object as its last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--num_samples", type=int, default=5000)
    parser.add_argument("--guidance", default="", help="scales, with commas between")
    parser.add_argument("--document", action="store_true", help="writes its table")
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
