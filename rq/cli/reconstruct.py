# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Shows images and their reconstructions by depth.

    rq reconstruct runs/digits --images=FILE_OR_FOLDER

Writes a PNG of originals, reconstructions at depths 1 to D, and errors.
"""

from __future__ import annotations

from rq import visualize
from rq.cli import run_flags
from rq.cli.flag import Flag
from rq.evaluation import trained_stages
from rq.parallel import processes

CONFIG, POSITIONAL = "directory", "workdir"
FLAGS = (
    Flag("images", "image file or folder; by default the evaluation split"),
    Flag("num_images", "number of images to show", 8, int, minimum=1),
    Flag("out", "PNG file to write"),
    run_flags.STEP,
    *run_flags.TRAINED,
)


def run(values) -> None:
    """Writes the picture."""
    experiment = run_flags.open_run(values, "reconstruct")
    # Another name for given images: do not overwrite the picture of training.
    prefix = "" if values.images is None else "images_"
    out = run_flags.output(values, experiment, f"{prefix}reconstructions.png")
    rqvae = trained_stages.TrainedRQVAE(experiment)
    picture = rqvae.reconstructions(values.num_images, values.images)
    if processes.is_process_0():
        visualize.save_png(out, picture)
        print(f"wrote {out}")
