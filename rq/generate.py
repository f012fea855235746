# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Draws images from a trained experiment, batch by batch; keeps the best of many."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from rq import sharding
from rq.config import ConfigError
from rq.editing import Given


def labels_of(config, num_samples: int, classes: tuple[int, ...]) -> np.ndarray:
    """The class of each sample, int32 `[N]` in their order; zeros without classes.

    Raises:
      ConfigError: on classes that the model does not have.
    """
    condition = config.transformer.condition
    if condition == "text":
        raise ConfigError("this model is conditioned on text, which needs a tokenizer")
    if condition == "none":
        if classes:
            raise ConfigError(f"classes {classes} of a model without classes")
        return np.zeros(num_samples, np.int32)
    number = config.data.num_classes
    classes = tuple(classes) or tuple(range(number))
    wrong = [label for label in classes if not 0 <= label < number]
    if wrong:
        raise ConfigError(f"classes {wrong}: the model has 0..{number - 1}")
    order = np.sort(np.resize(np.arange(len(classes)), num_samples))
    return np.asarray(classes, np.int32)[order]


def draw(
    experiment,
    labels: np.ndarray,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    given: Given | None = None,
    **changes,
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Images and codes of the samples `labels`, a batch at a time, on the devices.

    Every batch has the one shape that is compiled: the last is padded with copies.

    Args:
      experiment: a `rq.workdir.Experiment` with both stages.
      labels: classes int32 `[N]`, see `labels_of`.
      seed, batch_size, given, changes: see `Experiment.sample`.
    """
    stage, config = experiment.transformer, experiment.config
    options = stage.sampling_options(**changes)
    batch_size = min(batch_size or config.sampling.batch_size, len(labels))
    variables = stage.unrolled(experiment.transformer_state.model_variables())
    codes = keep = None
    if given is not None:
        codes = np.broadcast_to(given.codes, (batch_size, *given.codes.shape))
        keep = given.keep
    for start in range(0, len(labels), batch_size):
        indices = np.arange(start, start + batch_size) % len(labels)
        cond = jnp.asarray(labels[indices])
        with sharding.context(experiment.mesh):
            yield stage.sample(
                variables,
                cond if config.transformer.condition == "class" else None,
                jax.random.key(seed),
                first_index=start,
                options=options,
                batch=batch_size,
                codes=codes,
                keep=keep,
            )


def sample(experiment, labels: np.ndarray, **options) -> tuple[np.ndarray, np.ndarray]:
    """All of `draw` on the host: images `[N, R, R, C]` and codes `[N, H, W, D]`."""
    batches = list(draw(experiment, labels, **options))  # dispatched before one is read
    images, codes = (
        np.concatenate([np.asarray(part) for part in parts])[: len(labels)]
        for parts in zip(*batches, strict=True)
    )
    return images, codes


def sample_best(
    experiment,
    labels: np.ndarray,
    classifier: Callable[[jax.Array], jax.Array],
    keep: float,
    **options,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rejection sampling (paper section 4.2): of 1 / `keep` times as many the best.

    Of the candidates only codes and scores stay in memory; what is kept is decoded.

    Args:
      experiment: see `draw`.
      labels: classes of the samples wanted, int32 `[N]`.
      classifier: images `[B, R, R, C]` in [-1, 1] to log-probabilities of the classes.
      keep: the share of each class's candidates that is kept, above 0, at most 1.
      **options: of `draw`.

    Returns:
      images `[N, R, R, C]`, their classes `[N]`, codes `[N, H, W, D]` and each one's
      probability of its class `[N]`; in a class the best come first.

    Raises:
      ConfigError: on a share out of range, or a model without classes.
    """
    if not 0 < keep <= 1:
        raise ConfigError(f"--keep={keep}: must be within (0, 1]")
    if experiment.config.transformer.condition != "class":
        raise ConfigError("--keep ranks by class: the model has none")
    classes, first, wanted = np.unique(labels, return_index=True, return_counts=True)
    classes, wanted = classes[np.argsort(first)], wanted[np.argsort(first)]
    drawn = np.ceil(wanted / keep - 1e-9).astype(int)
    candidates = np.repeat(classes, drawn).astype(np.int32)

    codes, scores = [], []
    for batch, found in draw(experiment, candidates, **options):
        first = len(codes) * len(found)
        own = candidates[np.arange(first, first + len(found)) % len(candidates)]
        codes.append(found)
        scores.append(jnp.take_along_axis(classifier(batch), own[:, None], 1)[:, 0])
    codes, scores = (
        np.concatenate([np.asarray(part) for part in parts])[: len(candidates)]
        for parts in (codes, scores)
    )

    best, start = [], 0
    for number, few in zip(drawn, wanted, strict=True):
        order = np.argsort(-scores[start : start + number], kind="stable")
        best.append(start + order[:few])
        start += number
    best = np.concatenate(best)
    batch_size = min(len(best), experiment.config.sampling.batch_size)
    images = [
        np.asarray(experiment.transformer.decode(codes[np.resize(part, batch_size)]))[
            : len(part)
        ]
        for part in np.split(best, np.arange(batch_size, len(best), batch_size))
    ]
    return np.concatenate(images), candidates[best], codes[best], np.exp(scores[best])
