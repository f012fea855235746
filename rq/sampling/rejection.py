# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Rejection sampling (paper section 4.2): of many candidates the best are kept.

A classifier gives each candidate the probability of the class that it was drawn for.
Only codes and scores of candidates reach the host; images are decoded again from the
codes that are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rq.config import ConfigError, SamplingConfig
from rq.sampling.classifier import Classifier
from rq.sampling.codec import read_behind
from rq.sampling.conditions import Conditions
from rq.sampling.inpainting import Given
from rq.sampling.sampler import Sampler, check_finite


class Candidates(NamedTuple):
    """Candidates; those of one condition follow each other.

    Attributes:
      labels: int32 `[M]`, the class of each.
      cond: `[M]` or `[M, S]`.
      drawn: how many each condition has, `[C]`.
      kept: how many of them are kept, `[C]`.
    """

    labels: np.ndarray
    cond: np.ndarray
    drawn: np.ndarray
    kept: np.ndarray


class Labelled(NamedTuple):
    """A batch of samples of conditions.

    Attributes:
      images: `[B, Y, X, C]`, float32 in [-1, 1], or uint8.
      codes: int32 `[B, H, W, D]`.
      labels: int32 `[B]`.
      probabilities: float32 `[B]`, of their classes; None where none were ranked.
    """

    images: np.ndarray
    codes: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray | None


def make_candidates(asked: Conditions, rows: np.ndarray, keep: float) -> Candidates:
    """Returns 1 / `keep` times as many candidates as samples, by condition.

    Args:
      asked: the conditions.
      rows: which of them each sample has, in ascending order.
      keep: fraction of each condition's candidates that is kept.

    Raises:
      ConfigError: on a fraction out of range, or a model without classes.
    """
    if not 0 < keep <= 1:
        raise ConfigError(f"--keep={keep}: must be within (0, 1]")
    if "class" not in asked.names[0]:
        raise ConfigError(
            "--keep ranks by class: give --classes, if the model has them"
        )
    labels, cond = asked.at(rows)
    assert cond is not None  # there are classes
    new = (cond[1:] != cond[:-1]).reshape(len(cond) - 1, int(np.prod(cond.shape[1:])))
    first = np.flatnonzero(np.append(True, new.any(axis=1)))
    kept = np.diff(np.append(first, len(labels)))
    drawn = np.ceil(kept / keep - 1e-9).astype(int)
    return Candidates(
        np.repeat(labels[first], drawn),
        np.repeat(cond[first], drawn, axis=0),
        drawn,
        kept,
    )


def scored(
    sampler: Sampler,
    among: Candidates,
    rows: range,
    classifier: Classifier,
    config: SamplingConfig,
    given: Given | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields codes int32 `[B, H, W, D]` and log-probabilities `[B]` of candidates."""
    part = slice(rows.start, rows.stop)
    labels, cond = among.labels[part], among.cond[part]

    def dispatched():
        for batch in sampler.on_devices(
            cond, len(rows), config, first=rows.start, given=given
        ):
            padded = batch.rows.start + np.arange(len(batch.codes))
            own = labels[padded % len(labels)]
            images: Any = batch.images
            scores = jnp.take_along_axis(classifier(images), own[:, None], 1)
            yield len(batch.rows), (batch.codes, scores[:, 0], batch.finite)

    first = rows.start
    for codes, scores, finite in read_behind(dispatched()):
        check_finite(codes, finite, first)
        first += len(codes)
        yield codes, scores


def best(among: Candidates, scores: np.ndarray) -> np.ndarray:
    """Returns places of those that are kept, by condition, the most probable first."""
    starts = np.cumsum(among.drawn) - among.drawn
    return np.concatenate(
        [
            start + np.argsort(-scores[start : start + drawn], kind="stable")[:kept]
            for start, drawn, kept in zip(starts, among.drawn, among.kept, strict=True)
        ]
    )


def draw(
    sampler: Sampler,
    asked: Conditions,
    number: int,
    config: SamplingConfig,
    *,
    keep: float = 1.0,
    classifier: Classifier | None = None,
    given: Given | None = None,
    dtype=np.float32,
) -> Iterator[Labelled]:
    """Yields samples spread evenly over conditions, in order.

    Of those that are ranked, the most probable of a condition come first. In memory are
    a few batches, and codes and scores of the best of one condition so far.

    Args:
      sampler: draws and decodes.
      asked: the conditions.
      number: of samples.
      config: how they are drawn.
      keep: fraction of each condition's candidates that is kept; 1: no ranking.
      classifier: ranks them.
      given: codes of which some are kept in every sample.
      dtype: of the images: float32 in [-1, 1], or uint8.

    Raises:
      ConfigError: as `Sampler.batches` and `make_candidates`, or without classifier.
    """
    rows = asked.spread(number)
    if keep == 1:
        labels, cond = asked.at(rows)
        for images, codes in sampler.batches(
            cond, number, config, given=given, dtype=dtype
        ):
            yield Labelled(images, codes, labels[: len(codes)], None)
            labels = labels[len(codes) :]
        return
    among = make_candidates(asked, rows, keep)
    if classifier is None:
        raise ConfigError(f"keep={keep} needs a classifier")
    every = range(len(among.labels))
    drawn = scored(sampler, among, every, classifier, config, given)
    waiting = []  # kept, and not yet decoded
    for one in _best_by_condition(drawn, among):
        waiting.append(one)
        if sum(len(codes) for codes, _, _ in waiting) >= config.batch_size:
            yield from _decoded(sampler, waiting, config, dtype)
            waiting = []
    if waiting:
        yield from _decoded(sampler, waiting, config, dtype)


def collect(batches: Iterator[Labelled]) -> Labelled:
    """Returns all batches as one."""
    found: Iterator = (
        None if x[0] is None else np.concatenate(x) for x in zip(*batches, strict=True)
    )
    return Labelled(*found)


def _best_by_condition(drawn, among: Candidates):
    """Yields codes, labels and scores of what each condition keeps."""
    codes, scores = next(drawn)
    first = 0
    for number, kept in zip(among.drawn, among.kept, strict=True):
        best_codes, best_scores, missing = codes[:0], scores[:0], number
        while missing:
            if not len(codes):
                codes, scores = next(drawn)
            best_codes = np.concatenate([best_codes, codes[:missing]])
            best_scores = np.concatenate([best_scores, scores[:missing]])
            order = np.argsort(-best_scores, kind="stable")[:kept]
            best_codes, best_scores = best_codes[order], best_scores[order]
            taken = min(missing, len(codes))
            codes, scores, missing = codes[taken:], scores[taken:], missing - taken
        yield best_codes, np.full(kept, among.labels[first]), best_scores
        first += number


def _decoded(sampler, waiting, config, dtype) -> Iterator[Labelled]:
    codes, labels, scores = map(np.concatenate, zip(*waiting, strict=True))
    first = 0
    for images in sampler.decode(codes, config, dtype):
        part = slice(first, first + len(images))
        first += len(images)
        yield Labelled(images, codes[part], labels[part], np.exp(scores[part]))
