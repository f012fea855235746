# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measures and shows an experiment's trained stages."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from absl import logging
from etils import epath

from rq import progress, visualize
from rq.config import SamplingConfig
from rq.evaluation import pairs, reconstruction
from rq.metrics import code_usage as code_metrics
from rq.parallel import atomic_files, preemption, processes
from rq.sampling import conditions

if TYPE_CHECKING:
    from rq.data.loader import Pass

EVALUATION = "evaluation.json"
ROWS, COLUMNS = 10, 10  # conditions shown, at most, and samples of each


class TrainedRQVAE:
    """Evaluates an experiment's trained RQ-VAE, compiled once for all methods."""

    def __init__(self, experiment):
        """Takes an `rq.experiment.Experiment`."""
        self._experiment = experiment
        self._reconstructor = reconstruction.make_reconstructor(
            experiment.config, experiment.mesh
        )

    def reconstructions(self, number: int = 8, images=None) -> np.ndarray:
        """Returns a picture of images, reconstructions at depth 1..D, and errors.

        Args:
          number: number of images, at most.
          images: a file or folder; the evaluation split if None.
        """
        variables = self._experiment.rqvae_variables
        batches = self._experiment.image_batches(images)
        outputs = self._reconstructor.outputs(variables, batches, number)
        return visualize.reconstructions(*outputs)

    def code_usage(self) -> np.ndarray:
        """Returns a picture of how often the evaluation split uses each code."""
        batches = self._experiment.image_batches()
        codes = self._reconstructor.codes(self._experiment.rqvae_variables, batches)
        counts = code_metrics.histogram(codes, self._reconstructor.model.sizes)
        return visualize.code_usage(counts)

    def metrics(self, images=None, extractor=None, lpips=None) -> dict[str, float]:
        """Returns PSNR, SSIM, perceptual distance and code statistics by depth.

        Args:
          images: a file or folder; the evaluation split if None.
          extractor, lpips: for more distances, see `Reconstructor.compare`.
        """
        experiment, state = self._experiment, self._experiment.rqvae_state
        variables = experiment.rqvae_variables
        batches = _watched("rqvae: evaluation", experiment.image_batches(images))
        found = self._reconstructor.evaluate(variables, state.frozen, batches)
        if extractor is not None or lpips is not None:
            batches = _watched("rqvae: distances", experiment.image_batches(images))
            found |= self._reconstructor.compare(variables, batches, extractor, lpips)
        return found


def _watched(name: str, batches: Pass) -> Iterator[dict]:
    """Yields batches, with a bar; several processes exit between them after SIGTERM."""
    with progress.Bar(name, batches.number) as shown:
        for batch in batches:
            preemption.exit_on_stop("evaluation")
            yield batch
            shown.update(min(batches.batch_size, batches.number - shown.done))


def evaluate(experiment, images=None, extractor=None, lpips=None) -> dict[str, float]:
    """Returns metrics of the stages that have checkpoints, named 'stage/metric'.

    See `TrainedRQVAE.metrics` and `TransformerStage.evaluate`.

    Args:
      experiment: an `rq.experiment.Experiment`.
      images: a file or folder, for the RQ-VAE only; the evaluation split if None.
      extractor, lpips: for more distances, see `Reconstructor.compare`.
    """
    metrics = {}
    if experiment.has_rqvae:
        found = TrainedRQVAE(experiment).metrics(images, extractor, lpips)
        metrics = {f"rqvae/{name}": value for name, value in found.items()}
    if images is None and "transformer" in experiment.stages:
        stage = experiment.transformer
        stage.watch = functools.partial(_watched, "transformer: evaluation")
        found = stage.evaluate(experiment.transformer_state)
        metrics |= {f"transformer/{name}": value for name, value in found.items()}
    return metrics


def samples(experiment) -> np.ndarray:
    """Returns a picture of samples, a named row for each of the first conditions.

    The conditions are the first classes or, for a model with text, the first captions
    of the evaluation split, with their classes. Of a model of source images see
    `pairs.picture`.
    """
    config, classes, texts = experiment.config, (), ()
    if config.data.source != "none":
        return pairs.picture(experiment, config.seed)
    needs = conditions.NEEDS[config.transformer.condition]
    if "text" in needs:
        source = experiment.code_source(config.data.eval_split)
        read = [source.read(i) for i in range(min(ROWS, len(source)))]
        texts = tuple(captions[0] for _, captions in read if captions)
        classes = tuple(int(example["label"]) for example, lines in read if lines)
        classes = classes if "label" in needs else ()
    elif needs:
        classes = tuple(range(min(config.data.num_classes, ROWS)))
    names = texts or [str(label) for label in classes]
    asked = conditions.parse(config, experiment.tokenizer, classes, texts)
    number = max(len(names), 1) * COLUMNS
    _, cond = asked.at(asked.spread(number))
    options = SamplingConfig(**config.sampling).replace(seed=config.seed)
    images = experiment.sampler.sample(cond, number, options).images
    return visualize.sample_grid(images, COLUMNS, names or None)


def write_pictures(experiment, directory: epath.Path) -> None:
    """Writes pictures and metrics of the finished stages, unless they exist.

    Writes reconstructions.png, code_usage.png, samples.png and evaluation.json.
    """
    makers: dict[str, Callable] = {}
    if experiment.finished("rqvae"):
        rqvae = TrainedRQVAE(experiment)
        makers["reconstructions.png"] = rqvae.reconstructions
        makers["code_usage.png"] = rqvae.code_usage
    if experiment.finished("transformer") and experiment.has_rqvae:
        makers["samples.png"] = functools.partial(samples, experiment)
    # Process 0 decides what is missing, before it writes anything.
    evaluation = directory / EVALUATION
    missing = [not (directory / name).exists() for name in makers]
    missing.append(not _is_evaluated(experiment, evaluation))
    *missing, evaluating = processes.broadcast(missing)
    makers = {k: makers[k] for k, m in zip(makers, missing, strict=True) if m}
    directory.mkdir(parents=True, exist_ok=True)
    for name, make in makers.items():
        picture = make()
        if processes.is_process_0():
            visualize.save_png(directory / name, picture)
            logging.info("wrote %s", directory / name)
        preemption.exit_on_stop("pictures")
    if evaluating:
        results = evaluate(experiment)
        if processes.is_process_0():
            atomic_files.write_json(evaluation, results)
            logging.info("wrote %s", evaluation)


def _is_evaluated(experiment, file: epath.Path) -> bool:
    """Returns whether a file has metrics of all finished stages."""
    finished = {s for s in ("rqvae", "transformer") if experiment.finished(s)}
    known = json.loads(file.read_text()) if file.exists() else {}
    return {name.split("/")[0] for name in known} >= finished
