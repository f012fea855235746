# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""A page to look at: WORKDIR/eval/report.html, with its pictures beside it.

Metrics of all jobs by checkpoint; of the last job random samples, the best and the
worst, and their nearest neighbours among the training images; reconstructions by depth
and the use of codes. Needs no server.
"""

from __future__ import annotations

import html
import json
import pathlib

import numpy as np

from rq import visualize
from rq.evaluation import image_files, job, measure

RANDOM, EXTREMES, NEIGHBOURS = 64, 16, 8
COLUMNS = 16
LOOKED = 2_000  # samples among which the best and worst are looked for
TRAINING = 10_000  # images among which neighbours are looked for
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


def results(folder: pathlib.Path) -> list[dict]:
    """Of all finished jobs below a folder, by the transformer's step."""
    found = [json.loads(path.read_text()) for path in folder.glob(f"*/{job.RESULT}")]
    return sorted(
        found,
        key=lambda r: (
            r["settings"]["checkpoints"]["transformer"],
            r["evaluation"]["label"],
            json.dumps(r["settings"], sort_keys=True),
        ),
    )


def _told(settings: dict) -> str:
    """Of a job's settings what tells it from others, in a line."""
    sampling = settings["sampling"]
    parts = [f"{settings['samples']:,} samples", f"seed {settings['seed']}"]
    plain = {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "guidance": 1.0,
    }
    for name, off in plain.items():
        values = sampling[name]
        if any(value != off for value in values):
            parts.append(f"{name} {', '.join(f'{value:g}' for value in values)}")
    if settings["keep"] < 1:
        parts.append(f"best {100 * settings['keep']:g} %")
    return ", ".join(parts)


def table(found: list[dict]) -> list[list[str]]:
    """Rows of cells, the head first; metrics of which no job has any are left out."""
    names = list(dict.fromkeys(name for r in found for name in r["metrics"]))
    names = [name for name in names if "condition" not in name]
    rows = [["step", "samples", *names]]
    for r in found:
        cells = [f"{r['metrics'][n]:.4g}" if n in r["metrics"] else "" for n in names]
        step = r["settings"]["checkpoints"]["transformer"]
        rows.append([f"{step:,}", _told(r["settings"]), *cells])
    return rows


def nearest(features: np.ndarray, others: np.ndarray, number: int) -> np.ndarray:
    """Indices `[N, number]` of the nearest of `others` `[M, F]` to each of `[N, F]`."""
    squares = np.einsum("mf,mf->m", others, others)
    found = []
    for start in range(0, len(features), BLOCK):
        part = features[start : start + BLOCK]
        distances = squares - 2 * (part @ others.T)
        found.append(np.argsort(distances, axis=1, kind="stable")[:, :number])
    return np.concatenate(found)


def _some(batches, extractor, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images, and their features."""
    collector, images, left = measure.Collector(), [], number
    for batch in batches:
        batch = batch[:left]
        images.append(batch)
        collector.add(extractor(batch))
        left -= len(batch)
        if not left:
            break
    return np.concatenate(images), collector.reference().pool


def pictures(experiment, extractor, folder: pathlib.Path, seed: int = 0) -> dict:
    """Pictures of a finished job, uint8 `[H, W, 3]`, with what they show.

    The best samples are those whose neighbours among the training images are nearest,
    in units of how far those are from their own.
    """
    data = experiment.config.data
    samples = image_files.ImageSet(folder / job.SAMPLES).batches(measure.BATCH)
    images, features = _some(samples, extractor, LOOKED)
    training, others = _some(
        job.split_batches(data, data.train_split), extractor, TRAINING
    )
    neighbours = nearest(features, others, NEIGHBOURS)
    own = nearest(others, others, 4)[:, 3]
    apart = np.linalg.norm(features - others[neighbours[:, 0]], axis=1)
    usual = np.linalg.norm(others - others[own], axis=1)[neighbours[:, 0]]
    order = np.argsort(apart / np.maximum(usual, 1e-12), kind="stable")
    some = np.random.default_rng(seed).permutation(len(images))
    rows = some[:NEIGHBOURS]
    beside = np.concatenate(
        [images[rows, None], training[neighbours[rows]]], axis=1
    ).reshape(-1, *images.shape[1:])
    found = {
        "random": ("Random samples", visualize.grid(images[some[:RANDOM]], COLUMNS)),
        "best": (
            "Nearest to training images",
            visualize.grid(images[order[:EXTREMES]], COLUMNS),
        ),
        "worst": (
            "Farthest from training images",
            visualize.grid(images[order[::-1][:EXTREMES]], COLUMNS),
        ),
        "neighbours": (
            "Samples (first column) and the training images nearest to them",
            visualize.grid(beside, 1 + NEIGHBOURS),
        ),
        "reconstructions": (
            "Reconstructions of unseen images by depth",
            experiment.reconstructions(),
        ),
        "code_usage": ("How often codes are used", experiment.code_usage()),
    }
    return found


def write(folder: pathlib.Path, name: str, shown: dict, settings: dict) -> pathlib.Path:
    """Writes the page over all jobs of a folder; pictures of one.

    Args:
      folder: WORKDIR/eval.
      name: title of the page.
      shown: from `pictures`.
      settings: of the job that is pictured.
    """
    rows = table(results(folder))
    lines = [
        "<!doctype html><meta charset='utf-8'>",
        f"<title>{html.escape(name)}</title><style>{STYLE}</style>",
        f"<h1>{html.escape(name)}</h1><table>",
    ]
    for row, tag in zip(rows, ["th", *["td"] * (len(rows) - 1)], strict=True):
        cells = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        lines.append(f"<tr>{cells}</tr>")
    lines.append("</table>")
    for key, (title, picture) in shown.items():
        visualize.save_png(folder / "pictures" / f"{key}.png", picture)
        lines.append(f"<h2>{html.escape(title)}</h2>")
        lines.append(f"<img src='pictures/{key}.png' alt='{html.escape(title)}'>")
    told = html.escape(json.dumps(settings, indent=2))
    lines.append(f"<h2>Settings of the samples shown</h2><pre>{told}</pre>")
    path = folder / "report.html"
    path.write_text("\n".join(lines) + "\n")
    return path
