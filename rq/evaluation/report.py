# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""A page to look at: WORKDIR/eval/report.html, with its pictures beside it.

Metrics of all jobs, a table for each network and reference; of the last job random
samples, the best and the worst, and their nearest neighbours among the training images;
reconstructions by depth and the use of codes. Needs no server.
"""

from __future__ import annotations

import html
import json
import pathlib

import numpy as np

from rq import visualize
from rq.data import loader, sources
from rq.evaluation import feature_sets, references, sample_job, trained_stages
from rq.evaluation.extractors import Extractor
from rq.parallel import atomic_files, processes

RANDOM, EXTREMES, NEIGHBOURS = 64, 16, 8
COLUMNS = 16
TRAINING = 10_000  # images among which neighbours are looked for, from the first on
BLOCK = 1024

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 82rem;
       padding: 0 1rem; color: #222; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd;
         white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; image-rendering: pixelated; }
pre { background: #f5f5f5; padding: 1rem; overflow-x: auto; }
"""


def results(folder: pathlib.Path) -> dict[tuple[str, ...], list[dict]]:
    """Of all jobs below a folder, by network and reference; then by the step.

    Keys are the two names and, because several may have the same, their hashes.
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


# Sampling that changes nothing, and is not told.
PLAIN = {
    "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0,
    "guidance": 1.0, "guidance_schedule": "constant",
}  # fmt: skip


def told(settings: dict) -> str:
    """What tells a job from others, in a line."""
    parts = [f"{settings['samples']:,} samples", f"seed {settings['seed']}"]
    for name, plain in PLAIN.items():
        values = settings["sampling"][name]
        values = [values] if isinstance(values, str) else values
        if set(values) != {plain}:
            parts.append(f"{name} {', '.join(map(str, values))}")
    if settings["keep"] < 1:
        parts.append(f"best {100 * settings['keep']:g} % by {settings['judge']}")
    if settings["dtype"] != "as trained":
        parts.append(settings["dtype"])
    which = settings["conditions"]["which"]
    if which != "all":
        first = [" ".join(map(str, one.values())) for one in which[:4]]
        parts.append(f"of {', '.join(first)}{', ...' if len(which) > 4 else ''}")
    return "; ".join(parts)


def table(found: list[dict]) -> list[list[str]]:
    """Rows of cells, the head first."""
    names = list(dict.fromkeys(name for r in found for name in r["metrics"]))
    names = [name for name in names if "condition" not in name]
    rows = [["step", "samples", *names]]
    for r in found:
        cells = [f"{r['metrics'][n]:.4g}" if n in r["metrics"] else "" for n in names]
        rows.append(
            [str(r["settings"]["checkpoints"]["transformer"]), told(r["settings"])]
            + cells
        )
    return rows


def nearest(features: np.ndarray, others: np.ndarray, number: int):
    """The nearest of `others` `[M, F]` to each of `features` `[N, F]`.

    Returns:
      indices `[N, number]`, the nearest first, and distances `[N, number]`.
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
    """Of the first training images, in order; in the first process."""
    data = experiment.config.data
    about = f"{references.split_hash(data, data.train_split)} first {TRAINING}"

    def collect():
        _, features = references.split_features(
            data, data.train_split, extractor, TRAINING
        )
        collector = feature_sets.Collector(logits=False)
        collector.add_all(features)
        return collector.result()

    return feature_sets.cached(extractor, about, collect)


def _some(batches, indices: np.ndarray) -> np.ndarray:
    """Images of a stream by their places."""
    wanted, found, seen = set(indices.tolist()), {}, 0
    for batch in batches:
        for i in wanted & set(range(seen, seen + len(batch))):
            found[i] = batch[i - seen]
        seen += len(batch)
    return np.stack([found[i] for i in indices.tolist()])


def pictures(experiment, extractor: Extractor, task: sample_job.Job) -> dict:
    """Pictures of a finished job, uint8 `[H, W, 3]` by name, with what they show.

    The best samples are those whose neighbours among the training images are nearest,
    in units of how far those are from their own. All processes call it; {} in all but
    the first.
    """
    samples = task.sample()
    made, training = task.features(extractor), _training(experiment, extractor)
    rqvae = trained_stages.TrainedRQVAE(experiment)
    reconstructions, usage = rqvae.reconstructions(), rqvae.code_usage()

    def draw():
        of_sample = feature_sets.kept(
            samples.number
        )  # the place of each feature's image
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
        looked = f"{len(training.pool):,} training images"
        titles = {
            "random": f"Random samples of {samples.number:,}",
            "best": f"Nearest to {looked}",
            "worst": f"Farthest from {looked}",
        }
        found = {
            name: (title, visualize.grid(shown[name], COLUMNS))
            for name, title in titles.items()
        }
        found["neighbours"] = (
            f"Samples (first column) and the nearest of {looked}",
            visualize.grid(np.concatenate(beside), 1 + NEIGHBOURS),
        )
        found["reconstructions"] = (
            "Reconstructions of unseen images by depth", reconstructions
        )  # fmt: skip
        found["code_usage"] = "How often codes are used", usage
        return found

    return processes.run_on_process_0(draw) or {}


def write(experiment, extractor: Extractor, task: sample_job.Job) -> pathlib.Path:
    """Writes the page over all jobs of a workdir, with pictures of one: its path."""
    shown, folder = pictures(experiment, extractor, task), task.folder.parent
    path, title = folder / "report.html", html.escape(
        f"{experiment.config.data.name}: {experiment.path.name}"
    )  # fmt: skip
    if not processes.is_process_0():
        return path
    lines = [
        "<!doctype html><meta charset='utf-8'>",
        f"<title>{title}</title><style>{STYLE}</style><h1>{title}</h1>",
    ]
    for (features, reference, *hashes), found in results(folder).items():
        hashes = " and ".join(one[:8] for one in hashes)
        about = html.escape(f"{features}, reference {reference} ({hashes})")
        lines.append(f"<h2>{about}</h2><table>")
        rows = table(found)
        for row, tag in zip(rows, ["th", *["td"] * (len(rows) - 1)], strict=True):
            cells = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
            lines.append(f"<tr>{cells}</tr>")
        lines.append("</table>")
    for key, (title, picture) in shown.items():
        visualize.save_png(folder / "pictures" / f"{key}.png", picture)
        lines.append(f"<h2>{html.escape(title)}</h2>")
        lines.append(f"<img src='pictures/{key}.png' alt='{html.escape(title)}'>")
    settings = html.escape(json.dumps(task.settings, indent=2))
    lines.append(f"<h2>Settings of the samples shown</h2><pre>{settings}</pre>")
    with atomic_files.atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    return path
