# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Generates images.

    rq sample runs/digits --num_samples=64 --classes=3,7 --top_p=0.95

Writes a grid, and beside it an .npz: arr_0 uint8 [N, R, R, C], labels, codes. Sample i
of a seed is the same whatever the batch size. With --complete=IMAGE the codes of an
image stay but for those that --mask names.
"""

from __future__ import annotations

import functools

import numpy as np
from absl import flags

from rq import visualize
from rq.cli import run_flags
from rq.parallel import processes
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
    string("out", None, "a .png; an .npz is written beside it")
    run_flags.define_run(values)


def run(values) -> None:
    """Writes generated images as a PNG grid, and as arrays."""
    if values.complete is None:
        run_flags.refuse(values, "goes with --complete", "mask", "keep_depth")
    if values.keep == 1:
        run_flags.refuse(values, "goes with --keep below 1", "classifier")
    experiment = run_flags.open_run(values, "sample")
    out = run_flags.output(values, "generated.png")
    given = None
    if values.complete is not None:
        given = experiment.given(values.complete, values.mask, values.keep_depth)
    images, labels, codes = experiment.sample(
        values.num_samples,
        given=given,
        seed=experiment.config.sampling.seed,
        keep=values.keep,
        judge=classifier_of(values, experiment),
        **run_flags.conditions(values),
    )
    if not processes.is_process_0():
        return
    columns = int(np.ceil(np.sqrt(len(images))))
    visualize.save_png(out, visualize.grid(images, columns))
    np.savez(
        out.with_suffix(".npz"),
        arr_0=visualize.to_uint8(images),
        labels=labels,
        codes=codes,
    )
    print(f"wrote {out} and {out.with_suffix('.npz')}")


def classifier_of(values, experiment) -> classifier.Classifier | None:
    """Returns the classifier of `--classifier`; None: the run's own."""
    if values.classifier is None:
        return None
    known = experiment.config.data.num_classes
    return classifier.from_file(values.classifier, known)
