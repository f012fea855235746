# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Draws images beside their reconstructions by depth.

    rq reconstruct runs/digits --images=FILE_OR_FOLDER

Originals, reconstructions at depth 1 .. D and the error, as a PNG.
"""

from __future__ import annotations

from absl import flags

from rq import visualize
from rq.cli import run_flags
from rq.evaluation import trained_stages
from rq.parallel import processes

CONFIG, POSITIONAL = "directory", "workdir"


def define(values) -> None:
    """Defines the flags."""
    flags.DEFINE_string(
        "images",
        None,
        "an image file or a folder; the evaluation split if none",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_images", 8, "images shown", lower_bound=1, flag_values=values
    )
    flags.DEFINE_string("out", None, "a .png", flag_values=values)
    run_flags.define_run(values, dtype=False)


def run(values) -> None:
    """Writes the picture."""
    experiment = run_flags.open_run(values, "reconstruct")
    # Of images of one's own under another name: training's own picture stays.
    prefix = "" if values.images is None else "images_"
    out = run_flags.output(values, f"{prefix}reconstructions.png")
    rqvae = trained_stages.TrainedRQVAE(experiment)
    picture = rqvae.reconstructions(values.num_images, values.images)
    if processes.is_process_0():
        visualize.save_png(out, picture)
        print(f"wrote {out}")
