# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Generates images.

    rq sample digits --num_samples=64 --classes=3,7 --top_p=0.95

Writes a grid of the first images as PNG, and an .npz next to it: arr_0 uint8
[N, Y, X, C], labels, codes. --out=FILE.npz writes only that, --out=FOLDER one PNG per
image. Sample i of a seed does not depend on the batch size. With --complete=IMAGE, only
the codes in the region of --mask are generated; the others are those of the image.
Models of source images (data.source) generate from those in --source.
"""

from __future__ import annotations

from rq.cli import run_flags
from rq.cli.flag import Flag
from rq.evaluation import sample_files
from rq.sampling import classifier, inpainting

CONFIG, POSITIONAL = "directory", "workdir"
_REGIONS = ", ".join(inpainting.REGIONS)
FLAGS = (
    Flag("num_samples", "number of images", 64, int, minimum=1),
    *run_flags.CONDITIONS,
    *run_flags.SAMPLING.values(),
    *run_flags.REJECTION,
    Flag("complete", "image file, or file of codes, to complete"),
    Flag("mask", f"region to generate: an image file or {_REGIONS}", "bottom"),
    Flag("source", "source image, or folder of them, of a model that has them"),
    Flag("keep_depth", "depths to keep in that region", 0, int, minimum=0),
    Flag("out", "PNG (with an .npz next to it), .npz, or new folder to write"),
    run_flags.STEP,
    run_flags.DTYPE,
    *run_flags.TRAINED,
)


def run(values) -> None:
    """Generates images and writes them batch by batch."""
    if values.complete is None:
        run_flags.refuse(values, "needs --complete", "keep_depth")
        if values.source is None:
            run_flags.refuse(values, "needs --complete or --source", "mask")
    if values.keep == 1:
        run_flags.refuse(values, "needs --keep below 1", "classifier")
    experiment = run_flags.open_run(values, "sample")
    name = "generated.png"
    if not experiment.has_rqvae:
        name = "generated.npz"
        if values.keep != 1:
            experiment.require_rqvae("--keep")
    sample_files.write_samples(
        experiment,
        values.out or experiment.output_path / "samples" / name,
        values.num_samples,
        keep=values.keep,
        classifier=classifier_of(values, experiment),
        complete=values.complete,
        mask=values.mask if values["mask"].present else None,
        keep_depth=values.keep_depth,
        source=values.source,
        **run_flags.conditions(values),
    )


def classifier_of(values, experiment) -> classifier.Classifier | None:
    """Returns the classifier of `--classifier`; None if the run's own is to be used."""
    if values.classifier is None:
        return None
    known = experiment.config.data.num_classes
    return classifier.from_file(values.classifier, known)
