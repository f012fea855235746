# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes a Markdown report of all jobs, WORKDIR/eval/report.md, with pictures.

It has a table of metrics for each feature network and reference; random, best and worst
samples of the last job, and their nearest neighbours among the training images; and the
RQ-VAE's reconstructions by depth and use of codes.
"""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import numpy as np

from rq import visualize
from rq.config.sampling import OPTIONS
from rq.data import loader, sources
from rq.evaluation import feature_sets, references, sample_job, trained_stages
from rq.evaluation.extractors import Extractor
from rq.parallel import atomic_files, processes

RANDOM, EXTREMES, NEIGHBOURS = 64, 16, 8
COLUMNS = 16
TRAINING = 10_000  # training images, at most, that are searched for neighbours
BLOCK = 1024  # rows of distances computed at once
# Condition numbers of covariances are only in the JSON files.
HIDDEN = re.compile(r"s?FID condition( \(.*\))?")


def results(folder: pathlib.Path) -> dict[tuple[str, ...], list[dict]]:
    """Returns the results of all jobs below a folder, by network and reference.

    Keys are the two names and, as names may not be unique, their hashes. Values are
    sorted by the transformer's step.
    """
    names = "features", "reference", "features_sha256", "reference_sha256"
    found: dict[tuple[str, ...], list[dict]] = {}
    for path in sorted(folder.glob("*/metrics_*.json")):
        known = json.loads(path.read_text())
        key = tuple(known["evaluation"][name] for name in names)
        found.setdefault(key, []).append(known)
    for known in found.values():
        known.sort(
            key=lambda r: (
                r["settings"]["checkpoints"]["transformer"],
                json.dumps(r["settings"], sort_keys=True),
            )
        )
    return dict(sorted(found.items()))


def describe(settings: dict) -> str:
    """Returns a line with a job's settings, without those that have their default."""
    parts = [f"{settings['samples']:,} samples", f"seed {settings['seed']}"]
    for name, value in settings["sampling"].items():
        values = value if isinstance(value, list) else [value]
        default = OPTIONS[name].default
        if set(values) != set(default if isinstance(default, tuple) else [default]):
            parts.append(f"{name} {', '.join(map(str, values))}")
    if settings["keep"] < 1:
        parts.append(f"best {100 * settings['keep']:g} % by {settings['judge']}")
    if settings["dtype"] != "as trained":
        parts.append(settings["dtype"])
    which = settings["conditions"]["which"]
    if which != "all":
        first = [" ".join(map(str, one.values())) for one in which[:4]]
        parts.append(f"for {', '.join(first)}{', ...' if len(which) > 4 else ''}")
    return "; ".join(parts)


def table(found: list[dict]) -> list[list[str]]:
    """Returns rows of cells, the header first; missing metrics are empty."""
    names = dict.fromkeys(name for r in found for name in r["metrics"])
    names = [name for name in names if not HIDDEN.fullmatch(name)]
    rows = [["step", "samples", *names]]
    for r in found:
        values = [r["metrics"].get(name) for name in names]
        rows.append(
            [str(r["settings"]["checkpoints"]["transformer"]), describe(r["settings"])]
            + ["" if value is None else f"{value:.4g}" for value in values]
        )
    return rows


def markdown(rows: list[list[str]]) -> list[str]:
    """Returns a Markdown table of rows of cells, line by line."""
    header, *rest = [[_escape(cell) for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rest)]


def _escape(text: str) -> str:
    """Returns the text in one line, with Markdown's special characters escaped."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def nearest(features: np.ndarray, others: np.ndarray, number: int):
    """Returns the nearest of `others` `[M, F]` to each of `features` `[N, F]`.

    Returns:
      Indices `[N, number]`, the nearest first, and distances `[N, number]`.
    """
    squares = np.einsum("mf,mf->m", others, others)
    found, distances = [], []
    for start in range(0, len(features), BLOCK):
        part = features[start : start + BLOCK]
        apart = squares - 2 * (part @ others.T)
        order = np.argsort(apart, axis=1, kind="stable")[:, :number]
        own = np.einsum("nf,nf->n", part, part)[:, None]
        apart = np.take_along_axis(apart, order, axis=1) + own
        found.append(order)
        distances.append(np.sqrt(np.maximum(apart, 0)))
    return np.concatenate(found), np.concatenate(distances)


def _training(experiment, extractor: Extractor) -> feature_sets.FeatureSet | None:
    """Returns features of the first training images; None if not process 0."""
    data = experiment.config.data
    about = f"{references.split_hash(data, data.train_split)} first {TRAINING}"

    def collect():
        _, features = references.split_features(
            data, data.train_split, extractor, TRAINING
        )
        return feature_sets.collect(features, logits=False)

    return feature_sets.cached(extractor, about, collect)


def _some(batches, indices: np.ndarray) -> np.ndarray:
    """Returns the images at some indices of a stream."""
    wanted, found, seen = set(indices.tolist()), {}, 0
    for batch in batches:
        for i in wanted & set(range(seen, seen + len(batch))):
            found[i] = batch[i - seen]
        seen += len(batch)
    return np.stack([found[i] for i in indices.tolist()])


def pictures(experiment, extractor: Extractor, task: sample_job.Job) -> dict:
    """Returns titles and pictures, uint8 `[H, W, 3]`, of a finished job by name.

    The best samples are nearest to a training image, relative to that image's distance
    to its own neighbours. All processes must call it; {} if not process 0.
    """
    samples = task.sample()
    made: Any = task.features(extractor)  # `draw` reads them, in process 0 only
    training: Any = _training(experiment, extractor)
    rqvae = trained_stages.TrainedRQVAE(experiment)
    reconstructions, usage = rqvae.reconstructions(), rqvae.code_usage()

    def draw():
        of_sample = feature_sets.kept(samples.number)  # index of each feature's image
        neighbours, apart = nearest(made.pool, training.pool, NEIGHBOURS)
        _, own = nearest(training.pool, training.pool, 4)
        usual = own[neighbours[:, 0], -1]
        order = np.argsort(apart[:, 0] / np.maximum(usual, 1e-12), kind="stable")
        some = np.random.default_rng(0).permutation(len(order))
        chosen = {
            "random": some[:RANDOM],
            "best": order[:EXTREMES],
            "worst": order[::-1][:EXTREMES],
            "neighbours": some[:NEIGHBOURS],
        }
        places = np.unique(np.concatenate(list(chosen.values())))
        images = _some(samples.batches(64), of_sample[places])
        images = dict(zip(places, images, strict=True))
        shown = {k: np.stack([images[i] for i in x]) for k, x in chosen.items()}
        data = experiment.config.data
        source = loader.Variants(sources.open_split(data, data.train_split), data)
        beside = [
            np.stack([images[i], *(source[int(j)]["image"] for j in neighbours[i])])
            for i in chosen["neighbours"]
        ]
        searched = f"{len(training.pool):,} training images"
        titles = {
            "random": f"Random samples of {samples.number:,}",
            "best": f"Nearest to {searched}",
            "worst": f"Farthest from {searched}",
        }
        found = {
            name: (title, visualize.grid(shown[name], COLUMNS))
            for name, title in titles.items()
        }
        found["neighbours"] = (
            f"Samples (first column) and the nearest of {searched}",
            visualize.grid(np.concatenate(beside), 1 + NEIGHBOURS),
        )
        found["reconstructions"] = (
            "Reconstructions of unseen images by depth", reconstructions
        )  # fmt: skip
        found["code_usage"] = "How often codes are used", usage
        return found

    return processes.run_on_process_0(draw) or {}


def write(experiment, extractor: Extractor, task: sample_job.Job) -> pathlib.Path:
    """Writes the report on all jobs of a run directory, with pictures of one.

    Returns:
      Its path.
    """
    shown, folder = pictures(experiment, extractor, task), task.folder.parent
    path, data = folder / "report.md", experiment.config.data.name
    if not processes.is_process_0():
        return path
    lines = [f"# {_escape(f'{data}: {experiment.path.name}')}"]
    for (features, reference, *hashes), found in results(folder).items():
        hashes = " and ".join(one[:8] for one in hashes)
        title = _escape(f"{features}, reference {reference} ({hashes})")
        lines += ["", f"## {title}", "", *markdown(table(found))]
    for key, (title, picture) in shown.items():
        visualize.save_png(folder / "pictures" / f"{key}.png", picture)
        lines += ["", f"## {title}", "", f"![{title}](pictures/{key}.png)"]
    settings = json.dumps(task.settings, indent=2)
    lines += ["", "## Settings of the samples shown", "", "```json", settings, "```"]
    with atomic_files.atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    return path
