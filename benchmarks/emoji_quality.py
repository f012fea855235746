# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Do emoji show what was asked for? Prints one JSON object as its last line.

    python benchmarks/emoji_quality.py --workdir=runs/emoji_text
    python benchmarks/emoji_quality.py --workdir=runs/emoji_class

By text: of the images of 200 training captions, in how many is the nearest training
image (Euclidean, in pixels) of the caption's group? Reported beside it: the same for
captions that were not trained on, for training images through the RQ-VAE, and for the
images of other captions, which is what chance gives.

By class: how often do classifiers read the class that was asked for, plainly, with
guidance, with rejection, and with both? One classifier is the one that rejection ranks
by; the other, a support vector machine on real training images, has no part in it.

Exits with 1 where a target is missed. Pictures: WORKDIR/samples.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time

import jax.numpy as jnp
import numpy as np
from digits_quality import flatten, nearest, read, reconstruct
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import SVC

from rq import visualize
from rq.config import SamplingConfig
from rq.data import sources
from rq.data.emoji import GROUPS
from rq.experiment import Experiment
from rq.sampling import conditions, rejection

MIN_TEXT_AGREEMENT = 0.80
PICTURED_CAPTIONS = 20  # each beside the training image nearest to its sample
COLUMNS = 10


def train_classifier(images: np.ndarray, labels: np.ndarray) -> Pipeline:
    """A support vector machine; classes weigh the same, whatever their size."""
    support = SVC(C=10, class_weight="balanced")
    return make_pipeline(PCA(100, random_state=0), support).fit(flatten(images), labels)


def captions_of(source, number: int, rng) -> tuple[list[str], np.ndarray]:
    """Captions and groups of so many images, drawn without replacement."""
    chosen = rng.choice(len(source), min(number, len(source)), replace=False)
    read_both = [source.read(int(index)) for index in chosen]
    labels = [int(example["label"]) for example, _ in read_both]
    return [lines[0] for _, lines in read_both], np.asarray(labels)


def measure_text(experiment: Experiment, number: int, options: dict) -> dict:
    """Agreement of groups, by captions; draws captions with samples and neighbours."""
    data = experiment.config.data
    training, labels = read(sources.open_split(data, data.train_split))
    rng = np.random.default_rng(options["seed"])
    results, seconds = {}, {}
    for split in (data.train_split, data.eval_split):
        captions, groups = captions_of(sources.open_split(data, split), number, rng)
        start = time.perf_counter()
        samples, order = draw(
            experiment, len(captions), texts=tuple(captions), **options
        )
        seconds[split] = time.perf_counter() - start
        assert (order == np.arange(len(captions))).all()
        _, indices = nearest(samples, training)
        results[f"{split}_captions"] = float(np.mean(labels[indices] == groups))
        if split == data.train_split:
            others = np.roll(groups, 1)
            results["chance"] = float(np.mean(labels[indices] == others))
            draw_captions(experiment, captions, samples, training[indices])
    chosen = rng.choice(len(training), min(number, len(training)), replace=False)
    _, indices = nearest(reconstruct(experiment, training[chosen], 20), training)
    results["reconstructions"] = float(np.mean(labels[indices] == labels[chosen]))
    return results | {"sampling_seconds": seconds}


def draw(experiment, number: int, texts=(), keep: float = 1.0, **options):
    """Returns images and labels of samples; `options` are those of sampling."""
    asked = conditions.parse(experiment.config, experiment.tokenizer, texts=texts)
    config = SamplingConfig(**experiment.config.sampling).replace(**options)
    batches = rejection.draw(
        experiment.sampler,
        asked,
        number,
        config,
        keep=keep,
        classifier=None if keep == 1 else experiment.classifier,
    )
    images, _, labels, _ = rejection.collect(batches)
    return images, labels


def draw_captions(experiment, captions, samples, neighbours) -> None:
    """The first captions, each with its sample and the training image nearest to it."""
    pairs = np.stack([samples, neighbours], axis=1)[:PICTURED_CAPTIONS]
    picture = visualize.sample_grid(
        pairs.reshape(-1, *samples.shape[1:]),
        2,
        captions[:PICTURED_CAPTIONS],
        title="Caption, sample, nearest training image",
    )
    visualize.save_png(experiment.path / "samples" / "captions.png", picture)


def measure_classes(
    experiment: Experiment, number: int, guidance: float, keep: float, options: dict
) -> dict:
    """Agreement with both classifiers by way of sampling; draws each way's samples."""
    data = experiment.config.data
    judge = train_classifier(*read(sources.open_split(data, data.train_split)))
    validation, truth = read(sources.open_split(data, data.eval_split))
    results = {
        "independent_classifier": accuracy(judge.predict(flatten(validation)), truth),
        "own_classifier": accuracy(own(experiment, validation), truth),
    }
    agreement = results["agreement"] = {}
    ways = {
        "plain": {},
        "guidance": {"guidance": (guidance,)},
        "rejection": {"keep": keep},
        "both": {"guidance": (guidance,), "keep": keep},
    }
    for name, way in ways.items():
        start = time.perf_counter()
        samples, labels = draw(experiment, number, **way, **options)
        agreement[name] = {
            "independent": float(np.mean(judge.predict(flatten(samples)) == labels)),
            "own": float(np.mean(own(experiment, samples) == labels)),
            "seconds": time.perf_counter() - start,
        }
        shown = np.concatenate(
            [samples[labels == label][:COLUMNS] for label in range(len(GROUPS))]
        )
        picture = visualize.sample_grid(shown, COLUMNS, GROUPS, title=name)
        visualize.save_png(experiment.path / "samples" / f"{name}.png", picture)
    return results


def accuracy(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Of all, and the mean over classes, which samples are spread over evenly."""
    right = found == truth
    by_class = [right[truth == label].mean() for label in np.unique(truth)]
    return {"all": float(right.mean()), "mean_over_classes": float(np.mean(by_class))}


def own(experiment: Experiment, images: np.ndarray, batch_size=100) -> np.ndarray:
    """The classes that the experiment's own classifier reads."""
    parts = np.split(images, np.arange(batch_size, len(images), batch_size))
    scores = [np.asarray(experiment.classifier(jnp.asarray(part))) for part in parts]
    return np.concatenate(scores).argmax(axis=1)


def missed_targets(results: dict) -> list[str]:
    """One line for each target that the results miss."""
    if "agreement" not in results:
        found = results["train_captions"]
        if found >= MIN_TEXT_AGREEMENT:
            return []
        return [f"train_captions {found:.3f}, not >= {MIN_TEXT_AGREEMENT}"]
    agreement = results["agreement"]
    return [
        f"{way} does not raise agreement of the {kind} classifier: "
        f"{agreement[way][kind]:.3f} after {agreement['plain'][kind]:.3f}"
        for way in ("guidance", "rejection", "both")
        for kind in ("independent", "own")
        if agreement[way][kind] <= agreement["plain"][kind]
    ]


def main() -> int:
    """Measures, prints, and says by its exit status whether all targets are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--num_samples", type=int, help="200 by text, 450 by class")
    parser.add_argument("--guidance", type=float, default=2.0, help="of classes")
    parser.add_argument("--keep", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    experiment = Experiment(given.workdir)
    options = {"seed": given.seed}
    if experiment.config.transformer.condition == "text":
        settings = {"num_samples": given.num_samples or 200}
        results = measure_text(experiment, settings["num_samples"], options)
    else:
        settings = {
            "num_samples": given.num_samples or 450,
            "guidance": given.guidance,
            "keep": given.keep,
        }
        results = measure_classes(
            experiment,
            settings["num_samples"],
            given.guidance,
            given.keep,
            options,
        )
    missed = missed_targets(results)
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    print(
        json.dumps(
            {"benchmark": "emoji_quality"}
            | settings
            | options
            | results
            | {"missed": missed}
        )
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
