# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Generates images.

    rq sample runs/digits --num_samples=64 --classes=3,7 --top_p=0.95

Writes a grid of the first images, and beside it an .npz: arr_0 uint8 [N, R, R, C],
labels, codes; with --out=FILE.npz that alone, with --out=FOLDER a PNG for each image.
Sample i of a seed is the same whatever the batch size. With --complete=IMAGE the codes
of an image are kept but for those that --mask names.
"""

from __future__ import annotations

import functools

from absl import flags

from rq.cli import run_flags
from rq.evaluation import sample_files
from rq.sampling import classifier, inpainting

CONFIG, POSITIONAL = "directory", "workdir"


def define(values) -> None:
    """Defines the flags."""
    string = functools.partial(flags.DEFINE_string, flag_values=values)
    integer = functools.partial(flags.DEFINE_integer, flag_values=values)
    integer("num_samples", 64, "images in all", lower_bound=1)
    run_flags.define_conditions(values)
    run_flags.define_sampling(values)
    run_flags.define_rejection(values)
    string("complete", None, "an image file, or codes, to complete")
    string(
        "mask",
        "bottom",
        f"for --complete: what to draw, an image or one of {inpainting.REGIONS}",
    )
    integer("keep_depth", 0, "for --complete: depths that stay there", lower_bound=0)
    string("out", None, "a .png (an .npz goes beside it), an .npz, or a new folder")
    run_flags.define_run(values)


def run(values) -> None:
    """Draws images and writes them as they come."""
    if values.complete is None:
        run_flags.refuse(values, "goes with --complete", "mask", "keep_depth")
    if values.keep == 1:
        run_flags.refuse(values, "goes with --keep below 1", "classifier")
    experiment = run_flags.open_run(values, "sample")
    sample_files.write_samples(
        experiment,
        values.out or experiment.path / "samples" / "generated.png",
        values.num_samples,
        keep=values.keep,
        classifier=classifier_of(values, experiment),
        complete=values.complete,
        mask=values.mask,
        keep_depth=values.keep_depth,
        **run_flags.conditions(values),
    )


def classifier_of(values, experiment) -> classifier.Classifier | None:
    """Returns the classifier of `--classifier`; None: the run's own."""
    if values.classifier is None:
        return None
    known = experiment.config.data.num_classes
    return classifier.from_file(values.classifier, known)
