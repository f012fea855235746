# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measures a run, images that it generates, or any images.

    rq evaluate runs/digits
    rq evaluate runs/digits --num_samples=50000 --inception=FILE
    rq evaluate --samples=DIR_OR_NPZ --reference=DIR_OR_NPZ --inception=FILE

The first has reconstruction metrics and cross entropy, on the evaluation split or, with
--images, on files. The second generates images, and measures FID and its kin; killed,
it goes on where it was. The third measures anybody's images. Without --inception the
features are those of the run's own classifier, and metrics are named so.
"""

from __future__ import annotations

import functools

from absl import flags

from rq.cli import evaluate_images, run_flags
from rq.cli.sample import classifier_of
from rq.config import ConfigError
from rq.config.sampling import OPTIONS
from rq.convert import lpips_weights
from rq.evaluation import (
    clip,
    extractors,
    references,
    report,
    sample_job,
    trained_stages,
)

CONFIG, POSITIONAL = "directory", "workdir"

_SAMPLING = (*OPTIONS, "config.sampling")
# Flags of generated images, with --num_samples alone.
_OF_GENERATED = ("keep", "classifier", "classes", "text", *_SAMPLING)
_OF_ANY_RUN = ("step", "dtype", "mesh", "config")  # not of features of --inception


def define(values) -> None:
    """Defines the flags."""
    string = functools.partial(flags.DEFINE_string, flag_values=values)
    flags.DEFINE_integer(
        "num_samples",
        None,
        "generates so many images and measures them",
        lower_bound=1,
        flag_values=values,
    )
    string("inception", None, "file of `rq convert inception`, for FID")
    flags.DEFINE_enum(
        "resize",
        "tf1",
        list(extractors.RESIZES),
        "for --inception: as TensorFlow's graph, pytorch-fid or clean-fid",
        flag_values=values,
    )
    string("reference", "train", "train, eval, or images or statistics of any")
    string("clip", None, "folder of a CLIP in ONNX, for texts")
    string("lpips", None, "file of `rq convert lpips`, for reconstructions")
    string("images", None, "a file or folder to reconstruct; else the eval split")
    run_flags.define_conditions(values)
    run_flags.define_sampling(values)
    run_flags.define_rejection(values)
    evaluate_images.define(values)
    string("out", None, "JSON file to write")
    run_flags.define_run(values)


def run(values) -> None:
    """Prints metrics as JSON, and writes them."""
    refuse = functools.partial(run_flags.refuse, values)
    if not values.inception:
        refuse("goes with --inception", "resize")
    if values.samples is not None:
        others = set(_OF_GENERATED) - {"batch_size"}
        refuse("does not go with --samples", "num_samples", "lpips", "images", *others)
        if values.workdir is None:
            refuse("goes with a run directory", *_OF_ANY_RUN)
        evaluate_images.run(values)
        return
    refuse("goes with --samples", *evaluate_images.FLAGS)
    if values.num_samples is None:
        names = ("clip", "reference", *_OF_GENERATED)
        refuse("is of samples: it goes with --num_samples", *names)
        _evaluate_run(values)
        return
    refuse("does not go with --num_samples", "images", "lpips")
    if values.keep == 1:
        refuse("goes with --keep below 1", "classifier")
    if values.num_samples < 2:
        raise ConfigError("metrics need --num_samples=2 or more")
    _evaluate_samples(values)


def _extractor(values, experiment, required: bool):
    """Returns the network of features; None where there is none nor is one needed."""
    if values.inception:
        return extractors.inception(values.inception, experiment.mesh, values.resize)
    if required or experiment.finished("features"):
        return extractors.of_experiment(experiment)
    return None


def _evaluate_run(values) -> None:
    """Writes metrics of both stages."""
    experiment = run_flags.open_run(values, "evaluate")
    prefix = "" if values.images is None else "images_"
    out = run_flags.output(values, f"{prefix}evaluation.json", ".json")
    extractor = _extractor(values, experiment, required=False)
    network = lpips_weights.load(values.lpips, "--lpips") if values.lpips else None
    results = trained_stages.evaluate(experiment, values.images, extractor, network)
    run_flags.write_json(out, results)


def _evaluate_samples(values) -> None:
    """Generates images, writes their metrics and a page on them."""
    experiment = run_flags.open_run(values, "evaluate")
    extractor = _extractor(values, experiment, required=True)
    task = sample_job.Job(
        experiment,
        values.num_samples,
        keep=values.keep,
        classifier=classifier_of(values, experiment),
        classifier_name=values.classifier or "",
        **run_flags.conditions(values),
    )
    network = None
    if values.clip is not None:
        network = clip.Clip(values.clip)
        if not task.texts:
            raise ConfigError("--clip needs a model that is conditioned on text")
    reference, source = references.find_reference(
        experiment, extractor, values.reference
    )
    result = task.run(extractor, reference, values.reference, source, network)
    report.write(experiment, extractor, task)
    run_flags.write_json(values.out, result)
