# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measures the quality of the quick start's digits.

    python benchmarks/digits_quality.py --workdir=runs/digits

1. Do generated digits have the class that was requested? A support vector machine,
   trained on real training digits only, classifies them.
2. Are they new? Their distance to the nearest training digit is compared with that of
   two kinds of digits that passed through the same RQ-VAE: training digits, which is
   what a sampler that memorised its data would generate (novelty 0), and validation
   digits, which are real and unseen (novelty 1). WORKDIR/samples/
   nearest_training_digits.png shows the samples closest to training digits beside them.
3. Does each depth improve the reconstruction, and is the codebook in use?
4. Is the generator a classifier? The class under which a validation digit's codes are
   most likely is compared with its label (reported, without a target).

Distances are Euclidean, pixels in [0, 1]. The last line is one JSON object. The exit
code is 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time

import jax
import numpy as np
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import SVC

from rq import visualize
from rq.config import SamplingConfig
from rq.data import sources, stored_codes
from rq.evaluation import trained_stages
from rq.experiment import Experiment
from rq.sampling import conditions, likelihood, rejection

NUM_CLASSES = 10
SHIFTS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
PAIRS = 5  # samples of each class, shown beside their nearest training digit

MIN_CLASSIFIER_ACCURACY = 0.95
MIN_AGREEMENT = 0.90
MIN_NOVELTY = 0.5
MAX_CLOSE = 0.05  # new digits give 0.01
MAX_KNOWN_CODES = 0.01
MIN_USED = 0.5


def flatten(images: np.ndarray) -> np.ndarray:
    """Returns images `[N, H, W, C]` in [-1, 1] as rows `[N, H * W * C]` in [0, 1]."""
    return (
        ((np.clip(images, -1, 1) + 1) / 2).reshape(len(images), -1).astype(np.float32)
    )


def train_classifier(images: np.ndarray, labels: np.ndarray) -> Pipeline:
    """Trains a support vector machine on images and on copies shifted by a pixel."""
    shifted = [flatten(np.roll(images, shift, axis=(1, 2))) for shift in SHIFTS]
    classifier = make_pipeline(PCA(50, random_state=0), SVC(C=10, gamma=0.03))
    return classifier.fit(np.concatenate(shifted), np.tile(labels, len(SHIFTS)))


def nearest(images: np.ndarray, references: np.ndarray):
    """Returns distances `[N]` to the nearest references, and their indices `[N]`."""
    a, b = flatten(images).astype(np.float64), flatten(references).astype(np.float64)
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    indices = squares.argmin(1)
    chosen = np.take_along_axis(squares, indices[:, None], 1)[:, 0]
    return np.sqrt(np.maximum(chosen, 0)), indices


def novelty(samples, copies, new) -> dict[str, float]:
    """Compares distances to the nearest training digit, separately for each class.

    Classes differ widely in these distances: most digits 1 are close to another 1.

    Args:
      samples, copies, new: pairs of distances `[N]` and labels `[N]`, of generated
        digits, of reconstructed training digits and of reconstructed unseen digits.

    Returns:
      'novelty': where the samples' median distance lies between that of copies (0) and
      that of new digits (1), averaged over classes; 'close': the fraction of samples
      closer than all but one per cent of new digits, with distances divided by the
      median of new digits of the class; 'close_copies': the same fraction of copies.
    """
    scale = np.ones(NUM_CLASSES)
    positions = []
    for label in np.unique(samples[1]):
        at, low, high = (np.median(d[c == label]) for d, c in (samples, copies, new))
        scale[label] = high
        positions.append((at - low) / (high - low))
    relative = [
        distances / scale[labels] for distances, labels in (samples, copies, new)
    ]
    limit = np.percentile(relative[2], 1)
    return {
        "novelty": float(np.mean(positions)),
        "close": float(np.mean(relative[0] < limit)),
        "close_copies": float(np.mean(relative[1] < limit)),
    }


def known_fraction(codes: np.ndarray, training_codes: np.ndarray) -> float:
    """Returns the fraction of code maps `[N, H, W, D]` that are in the training set."""
    known = {codes_of_one.tobytes() for codes_of_one in training_codes.astype(np.int32)}
    return float(np.mean([one.tobytes() in known for one in codes.astype(np.int32)]))


def draw_pairs(samples, labels, training, distances, indices) -> np.ndarray:
    """Returns a picture of the samples closest to training digits, beside them."""
    rows = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        for index in members[np.argsort(distances[members])[:PAIRS]]:
            rows += [samples[index], training[indices[index]]]
    names = [str(label) for label in np.unique(labels)]
    return visualize.sample_grid(
        np.stack(rows),
        2 * PAIRS,
        names,
        title="Samples closest to a training digit, which is on their right",
    )


def read(source) -> tuple[np.ndarray, np.ndarray]:
    """Returns all images `[N, H, W, C]` in [-1, 1] and labels `[N]` of a source."""
    examples = [source[index] for index in range(len(source))]
    images = np.stack([example["image"] for example in examples])
    labels = np.asarray([example["label"] for example in examples])
    return images.astype(np.float32) / 127.5 - 1, labels


def reconstruct(
    experiment: Experiment, images: np.ndarray, batch_size=100
) -> np.ndarray:
    """Returns the reconstructions of images by the RQ-VAE, at full depth."""
    model, variables = experiment.rqvae, experiment.rqvae_variables

    @jax.jit
    def apply(variables, images):
        codes = model.apply(variables, images, method="codes")
        return model.apply(variables, codes, method="decode_codes")

    starts = range(0, len(images), batch_size)
    batches = [apply(variables, images[i : i + batch_size]) for i in starts]
    return np.concatenate([np.asarray(batch) for batch in batches])


def first_of_each_class(labels: np.ndarray, number: int) -> np.ndarray:
    """Returns the indices of the first `number` examples of each class."""
    return np.concatenate(
        [np.flatnonzero(labels == c)[:number] for c in np.unique(labels)]
    )


def measure(experiment: Experiment, num_samples: int, seed: int) -> dict:
    """Returns all results; saves the picture of pairs in the run's `samples`."""
    data = experiment.config.data
    training, training_labels = read(sources.open_split(data, data.train_split))
    validation, validation_labels = read(sources.open_split(data, data.eval_split))

    classifier = train_classifier(training, training_labels)
    accuracy = classifier.score(flatten(validation), validation_labels)

    start = time.perf_counter()
    asked = conditions.parse(experiment.config, classes=tuple(range(NUM_CLASSES)))
    config = SamplingConfig(**experiment.config.sampling).replace(seed=seed)
    samples, codes, labels, _ = rejection.collect(
        rejection.draw(experiment.sampler, asked, num_samples, config)
    )
    seconds = time.perf_counter() - start
    agrees = classifier.predict(flatten(samples)) == labels

    distances, indices = nearest(samples, training)
    per_class = len(validation) // NUM_CLASSES
    chosen = first_of_each_class(training_labels, per_class)
    copies = reconstruct(experiment, training[chosen])
    new = reconstruct(experiment, validation)
    copy_distances, new_distances = (
        nearest(copies, training)[0],
        nearest(new, training)[0],
    )
    comparison = novelty(
        (distances, labels),
        (copy_distances, training_labels[chosen]),
        (new_distances, validation_labels),
    )
    directory = experiment.path / "codes" / data.train_split
    stored = stored_codes.CodeSource(directory, experiment.fingerprint)
    training_codes = np.stack([stored[i]["codes"] for i in range(len(stored))])

    picture = draw_pairs(samples, labels, training, distances, indices)
    path = experiment.path / "samples" / "nearest_training_digits.png"
    visualize.save_png(path, picture)

    source = experiment.code_source(data.eval_split)
    examples = [source[i] for i in range(len(source))]
    scores = likelihood.by_condition(
        experiment.transformer.model,
        experiment.transformer_state.model_variables()["params"],
        experiment.rqvae_variables["codebook"]["state"].embedding,
        np.stack([example["codes"] for example in examples]),
        np.arange(NUM_CLASSES),
    ).sum(axis=-1)
    truth = np.stack([example["label"] for example in examples])

    evaluation = trained_stages.evaluate(experiment)
    depth = experiment.config.rqvae.model.code_shape[-1]
    return {
        "classifier_accuracy": float(accuracy),
        "agreement": float(agrees.mean()),
        "agreement_by_class": [
            float(agrees[labels == label].mean()) for label in np.unique(labels)
        ],
        **comparison,
        "known_codes": known_fraction(codes, training_codes),
        "median_distance": {
            "samples": float(np.median(distances)),
            "reconstructed_training_digits": float(np.median(copy_distances)),
            "reconstructed_validation_digits": float(np.median(new_distances)),
            "validation_digits": float(np.median(nearest(validation, training)[0])),
        },
        "psnr_by_depth": [
            float(evaluation[f"rqvae/psnr/depth_{d + 1}"]) for d in range(depth)
        ],
        "likelihood_accuracy": float(np.mean(np.argmax(scores, axis=1) == truth)),
        "used": float(evaluation["rqvae/usage/all"]),
        "sampling_seconds": seconds,
        "picture": str(path),
    }


def missed_targets(results: dict) -> list[str]:
    """Returns one line for each target that the results miss."""
    psnr = results["psnr_by_depth"]
    checks = [
        ("classifier_accuracy", ">=", MIN_CLASSIFIER_ACCURACY),
        ("agreement", ">=", MIN_AGREEMENT),
        ("novelty", ">=", MIN_NOVELTY),
        ("close", "<=", MAX_CLOSE),
        ("known_codes", "<=", MAX_KNOWN_CODES),
        ("used", ">", MIN_USED),
    ]
    meets = {
        ">=": lambda value, target: value >= target,
        "<=": lambda value, target: value <= target,
        ">": lambda value, target: value > target,
    }
    missed = [
        f"{name} {results[name]:.4f}, not {relation} {target}"
        for name, relation, target in checks
        if not meets[relation](results[name], target)
    ]
    if not all(a < b for a, b in zip(psnr, psnr[1:], strict=False)):
        missed.append(f"psnr_by_depth {psnr} does not strictly rise")
    return missed


def main() -> int:
    """Measures and prints; returns exit code 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, default="runs/digits")
    parser.add_argument("--num_samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    experiment = Experiment(options.workdir)
    results = measure(experiment, options.num_samples, options.seed)
    missed = missed_targets(results)
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    settings = {"num_samples": options.num_samples, "seed": options.seed}
    print(
        json.dumps(
            {"benchmark": "digits_quality"}
            | settings
            | results
            | {
                "missed": missed,
            }
        )
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
