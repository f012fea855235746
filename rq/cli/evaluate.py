# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measures a run, images that it generates, or any images.

    rq evaluate runs/digits
    rq evaluate runs/digits --num_samples=50000 --inception=FILE
    rq evaluate runs/segment --pairs=0
    rq evaluate --samples=DIR_OR_NPZ --reference=DIR_OR_NPZ --inception=FILE

The first measures reconstructions and cross entropy on the evaluation split, or on
--images. The second generates images and measures FID, precision and recall; it resumes
if it was killed. The third generates an image of each source image of the evaluation
split, of a model that has them, and compares it with the true one: PSNR, SSIM and
distances of features; of label maps, mean IoU and pixel accuracy. The last measures any
images. Without --inception, features are those
of the run's own classifier, and the names of metrics say so.
"""

from __future__ import annotations

import functools

from rq import visualize
from rq.cli import evaluate_images, run_flags
from rq.cli.flag import Flag
from rq.cli.sample import classifier_of
from rq.config import ConfigError
from rq.config.sampling import OPTIONS
from rq.convert import lpips_weights
from rq.evaluation import (
    clip,
    extractors,
    pairs,
    references,
    report,
    sample_job,
    trained_stages,
)
from rq.parallel import processes

CONFIG, POSITIONAL = "directory", "workdir"

# Flags for generated images, which need --num_samples.
_SAMPLING = ("keep", "classifier", "classes", "text", *OPTIONS, "config.sampling")
_OF_A_RUN = ("step", "dtype", "mesh", "config")


FLAGS = (
    Flag(
        "num_samples", "number of images to generate and measure", type=int, minimum=1
    ),
    Flag("inception", "for FID: file of `rq convert inception`"),
    Flag(
        "resize",
        "for --inception: resize as TensorFlow, pytorch-fid or clean-fid do",
        "tf1",
        choices=tuple(extractors.RESIZES),
    ),
    Flag("reference", "train, eval, or images or statistics to compare with", "train"),
    Flag("clip", "for texts: folder of a CLIP model in ONNX"),
    Flag("lpips", "for reconstructions: file of `rq convert lpips`"),
    Flag("images", "image file or folder to reconstruct; default: evaluation split"),
    Flag("pairs", "source images of the evaluation split; 0: all", type=int, minimum=0),
    *run_flags.CONDITIONS,
    *run_flags.SAMPLING.values(),
    *run_flags.REJECTION,
    *evaluate_images.FLAGS,
    Flag("out", "JSON file to write"),
    run_flags.STEP,
    run_flags.DTYPE,
    *run_flags.TRAINED,
)


def run(values) -> None:
    """Prints metrics as JSON and writes them."""
    refuse = functools.partial(run_flags.refuse, values)
    if not values.inception:
        refuse("needs --inception", "resize")
    if values.samples is not None:
        others = set(_SAMPLING) - {"batch_size"}
        refuse(
            "cannot be combined with --samples",
            "num_samples",
            "lpips",
            "images",
            "pairs",
            *others,
        )
        if values.workdir is None:
            refuse("needs a run directory", *_OF_A_RUN)
        evaluate_images.run(values)
        return
    refuse("needs --samples", *evaluate_images.NEED_SAMPLES)
    if values.pairs is not None:
        others = {"keep", "classifier", "classes", "text"}
        refuse("cannot be combined with --pairs", "num_samples", "images", *others)
        refuse("cannot be combined with --pairs", "clip", "reference", "lpips")
        _evaluate_pairs(values)
        return
    if values.num_samples is None:
        refuse("needs --num_samples", "clip", "reference", *_SAMPLING)
        _evaluate_run(values)
        return
    refuse("cannot be combined with --num_samples", "images", "lpips")
    if values.keep == 1:
        refuse("needs --keep below 1", "classifier")
    if values.num_samples < 2:
        raise ConfigError("metrics need --num_samples=2 or more")
    _evaluate_samples(values)


def _extractor(values, experiment, required: bool):
    """Returns the feature extractor; None if the run has none and none is required."""
    if values.inception:
        return extractors.inception(values.inception, experiment.mesh, values.resize)
    if required or experiment.finished("features"):
        return extractors.of_experiment(experiment)
    return None


def _evaluate_run(values) -> None:
    """Prints and writes metrics of both stages."""
    experiment = run_flags.open_run(values, "evaluate")
    if values.images is not None:
        experiment.require_rqvae("--images")
    prefix = "" if values.images is None else "images_"
    out = run_flags.output(values, experiment, f"{prefix}evaluation.json", ".json")
    extractor = _extractor(values, experiment, required=False)
    network = lpips_weights.load(values.lpips, "--lpips") if values.lpips else None
    results = trained_stages.evaluate(experiment, values.images, extractor, network)
    run_flags.write_json(out, results)


def _evaluate_pairs(values) -> None:
    """Prints and writes metrics of samples of source images; writes a picture."""
    experiment = run_flags.open_run(values, "evaluate")
    experiment.require_rqvae("--pairs")
    out = run_flags.output(values, experiment, "pairs.json", ".json")
    extractor = _extractor(values, experiment, required=False)
    results = pairs.evaluate(experiment, values.pairs, extractor)
    shown = pairs.picture(experiment, experiment.config.sampling.seed)
    if processes.is_process_0():
        visualize.save_png(out.with_suffix(".png"), shown)
    run_flags.write_json(out, results)


def _evaluate_samples(values) -> None:
    """Generates images, then writes their metrics and a report."""
    experiment = run_flags.open_run(values, "evaluate")
    experiment.require_rqvae("--num_samples")
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
