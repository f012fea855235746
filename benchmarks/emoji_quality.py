# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measures whether generated emoji show what was requested.

    python benchmarks/emoji_quality.py --workdir=runs/emoji_text
    python benchmarks/emoji_quality.py --workdir=runs/emoji_class

By text: for how many of 200 training captions does the training image nearest to the
generated one (Euclidean, in pixels) belong to the caption's group? Reported for
comparison: the same for captions that were not trained on, for training images
reconstructed by the RQ-VAE, and for other captions, which gives the level of chance.

By class: how often do classifiers predict the requested class, for plain sampling, with
guidance, with rejection, and with both? One classifier is the one that rejection uses.
The other, a support vector machine trained on real images, is independent.

Pictures go to WORKDIR/samples. The last line is one JSON object. The exit code is 1 if
a target is missed.
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
PICTURED_CAPTIONS = 20  # each with its sample and the nearest training image
COLUMNS = 10


def train_classifier(images: np.ndarray, labels: np.ndarray) -> Pipeline:
    """Trains a support vector machine that weighs all classes equally."""
    support = SVC(C=10, class_weight="balanced")
    return make_pipeline(PCA(100, random_state=0), support).fit(flatten(images), labels)


def captions_of(source, number: int, rng) -> tuple[list[str], np.ndarray]:
    """Returns captions and groups of images chosen at random without replacement."""
    chosen = rng.choice(len(source), min(number, len(source)), replace=False)
    read_both = [source.read(int(index)) for index in chosen]
    labels = [int(example["label"]) for example, _ in read_both]
    return [lines[0] for _, lines in read_both], np.asarray(labels)


def measure_text(experiment: Experiment, number: int, options: dict) -> dict:
    """Returns how often groups agree; saves a picture of captions and samples."""
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
    """Returns samples and their labels; `options` are fields of `SamplingConfig`."""
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
    """Saves a picture of captions, their samples and the nearest training images."""
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
    """Returns how often classifiers agree with the request; saves pictures."""
    data = experiment.config.data
    svm = train_classifier(*read(sources.open_split(data, data.train_split)))
    validation, truth = read(sources.open_split(data, data.eval_split))
    results = {
        "independent_classifier": accuracy(svm.predict(flatten(validation)), truth),
        "own_classifier": accuracy(own_classes(experiment, validation), truth),
    }
    agreement = results["agreement"] = {}
    methods = {
        "plain": {},
        "guidance": {"guidance": (guidance,)},
        "rejection": {"keep": keep},
        "both": {"guidance": (guidance,), "keep": keep},
    }
    for name, settings in methods.items():
        start = time.perf_counter()
        samples, labels = draw(experiment, number, **settings, **options)
        agreement[name] = {
            "independent": float(np.mean(svm.predict(flatten(samples)) == labels)),
            "own": float(np.mean(own_classes(experiment, samples) == labels)),
            "seconds": time.perf_counter() - start,
        }
        shown = np.concatenate(
            [samples[labels == label][:COLUMNS] for label in range(len(GROUPS))]
        )
        picture = visualize.sample_grid(shown, COLUMNS, GROUPS, title=name)
        visualize.save_png(experiment.path / "samples" / f"{name}.png", picture)
    return results


def accuracy(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Returns the accuracy over all images, and over classes as samples have them."""
    right = found == truth
    by_class = [right[truth == label].mean() for label in np.unique(truth)]
    return {"all": float(right.mean()), "mean_over_classes": float(np.mean(by_class))}


def own_classes(
    experiment: Experiment, images: np.ndarray, batch_size=100
) -> np.ndarray:
    """Returns the classes `[N]` that the experiment's own classifier predicts."""
    batches = np.split(images, np.arange(batch_size, len(images), batch_size))
    scores = [np.asarray(experiment.classifier(jnp.asarray(x))) for x in batches]
    return np.concatenate(scores).argmax(axis=1)


def missed_targets(results: dict) -> list[str]:
    """Returns one line for each target that the results miss."""
    if "agreement" not in results:
        found = results["train_captions"]
        if found >= MIN_TEXT_AGREEMENT:
            return []
        return [f"train_captions {found:.3f}, not >= {MIN_TEXT_AGREEMENT}"]
    agreement = results["agreement"]
    return [
        f"{method} does not raise agreement of the {kind} classifier: "
        f"{agreement[method][kind]:.3f}, plain {agreement['plain'][kind]:.3f}"
        for method in ("guidance", "rejection", "both")
        for kind in ("independent", "own")
        if agreement[method][kind] <= agreement["plain"][kind]
    ]


def main() -> int:
    """Measures and prints; returns exit code 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument(
        "--num_samples", type=int, help="default: 200 by text, 450 by class"
    )
    parser.add_argument("--guidance", type=float, default=2.0, help="by class only")
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
