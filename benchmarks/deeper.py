# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Shows reconstructions of emoji from 1, 2, 4, 8 and 16 codes of each position.

    python benchmarks/deeper.py --workdir=runs/deeper --document

All depths share one codebook, so that a model trained with four takes any number. This
compares the RQ-VAE that comes with rq with the same after some steps at depth 16: PSNR
and entropy of the codes by depth, on emoji that neither has seen. --document writes the
table and the picture of docs/results.md. Finished runs are kept. The last line is one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import runpy

import document
import numpy as np

from rq import config as config_lib
from rq import visualize
from rq.cli import log_output
from rq.config.config_file import find
from rq.evaluation import reconstruction, trained_stages
from rq.experiment import Experiment

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "docs/results.md"
PICTURE = ROOT / "docs/images/deeper.png"
DEPTHS = (1, 2, 4, 8, 16)
SHOWN = 10  # images of the picture


def trained(workdir: pathlib.Path, steps: int) -> Experiment:
    """Returns a run of depth 16 that starts from the model that comes with rq."""
    from rq.cli.train import run_stages

    config = runpy.run_path(find("emoji"))["get_config"]("nogan")
    rows, columns, _ = config.rqvae.model.code_shape
    config.update_from_flattened_dict(
        {
            "stages": ("rqvae",),
            "init_from": "emoji",
            "init_stages": ("rqvae",),
            "rqvae.steps": steps,
            "rqvae.optimizer.warmup_steps": min(50, steps),
            "rqvae.optimizer.learning_rate": 5e-4,
            "rqvae.adversarial.optimizer.warmup_steps": 0,  # there is none
            "rqvae.loss.perceptual": "none",
            "rqvae.model.code_shape": (rows, columns, max(DEPTHS)),
            "rqvae.model.depth_dropout": 0.1,
            "rqvae.model.restart_codes": steps > 1,  # one step leaves it as it is
            "log.eval_every": 10_000,
        }
    )
    config_lib.validate(config)
    path = workdir / f"{steps}_steps"
    run_stages(config, path)
    return Experiment(path)


def measure(experiment) -> dict[str, list[float]]:
    """Returns 'psnr' and 'bits' (entropy, of an image) by depth of `DEPTHS`."""
    found = trained_stages.TrainedRQVAE(experiment).metrics()
    rows, columns, _ = experiment.rqvae.code_shape
    entropy = [
        found[f"entropy_bits/depth_{d}"] * rows * columns
        for d in range(1, max(DEPTHS) + 1)
    ]
    return {
        "psnr": [found[f"psnr/depth_{d}"] for d in DEPTHS],
        "bits": [sum(entropy[:d]) for d in DEPTHS],
    }


def rows_of(experiment) -> list[np.ndarray]:
    """Returns the first images as they are, and reconstructed from each depth."""
    reconstructor = reconstruction.make_reconstructor(
        experiment.config, experiment.mesh
    )
    originals, by_depth = reconstructor.outputs(
        experiment.rqvae_variables, experiment.image_batches(), SHOWN
    )
    return [originals, *(by_depth[d - 1] for d in DEPTHS)]


def table(results: dict) -> str:
    """Returns a Markdown table."""
    lines = [
        "| | depth " + " | ".join(map(str, DEPTHS)) + " |",
        "|---" * (1 + len(DEPTHS)) + "|",
    ]
    for name, found in results.items():
        cells = " | ".join(f"{x:.2f}" for x in found["psnr"])
        lines.append(f"| {name}: PSNR, dB | {cells} |")
        cells = " | ".join(f"{x:,.0f}" for x in found["bits"])
        lines.append(f"| {name}: entropy, bits | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Trains and measures; writes the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--document", action="store_true", help="write docs/results.md")
    given = parser.parse_args()
    log_output.start(debug=False)
    workdir = given.workdir.absolute()
    runs = {
        "as shipped": trained(workdir, 1),
        f"{given.steps:,} steps at depth 16": trained(workdir, given.steps),
    }
    results = {name: measure(run) for name, run in runs.items()}
    print(table(results))
    if given.document:
        document.insert(RESULTS, "deeper", table(results))
        names = ["original", *(f"depth {d}" for d in DEPTHS)]
        images = np.concatenate(rows_of(list(runs.values())[-1]))
        visualize.save_png(PICTURE, visualize.sample_grid(images, SHOWN, names))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
