# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Draws images from a trained experiment, batch by batch; keeps the best of many."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rq.config import ConfigError
from rq.parallel import sharding
from rq.sampling import conditions
from rq.sampling.classifier import Classifier
from rq.sampling.inpainting import Given


class Wanted(NamedTuple):
    """What is to be drawn.

    Attributes:
      labels: int32 `[N]`, class of each sample, or place of its text, or zero.
      cond: what the model is told, `[N]` or `[N, S]`; None of an unconditional one.
    """

    labels: np.ndarray
    cond: np.ndarray | None


class Conditions(NamedTuple):
    """What a model may be told, N different things.

    Attributes:
      cond: int32 `[N]` classes or `[N, S]`; None of an unconditional model (N = 1).
      labels: int32 `[N]`, the class of each, or its place where there are no classes.
      names: of each, 'class' and 'text' as the model has them.
    """

    cond: np.ndarray | None
    labels: np.ndarray
    names: list[dict]

    def ranked(self, by_depth: np.ndarray, positions: int) -> list[dict]:
        """Of one image, from log p by condition and depth `[N, D]` in nats."""
        total = by_depth.sum(axis=1)
        bits = -by_depth / (positions * math.log(2))
        return [
            self.names[i]
            | {"log_likelihood": float(total[i]), "bits_per_code": bits[i].tolist()}
            for i in np.argsort(-total, kind="stable")
        ]


def conditions_of(experiment, classes=(), texts=()) -> Conditions:
    """Classes and texts as a model takes them.

    Args:
      experiment: a `rq.experiment.Experiment`.
      classes: of a model that has them; all where empty.
      texts: of a model that has text. With classes too, as many or one of either.

    Raises:
      ConfigError: on what the model does not have, or lacks.
    """
    config = experiment.config
    kind = config.transformer.condition
    for name, given in (("classes", classes), ("texts", texts)):
        if given and conditions.FIELDS[name] not in conditions.NEEDS[kind]:
            raise ConfigError(f"{name} {given} of a model whose condition is {kind!r}")
    if kind == "none":
        return Conditions(None, np.zeros(1, np.int32), [{}])
    batch, number, names = {}, len(texts), {}
    if "text" in conditions.NEEDS[kind]:
        if not texts:
            raise ConfigError("this model is conditioned on text: give --text=...")
        batch["text"] = np.stack([experiment.tokenizer(line) for line in texts])
        names["text"] = list(texts)
    if "label" in conditions.NEEDS[kind]:
        known = config.data.num_classes
        classes = tuple(classes) or tuple(range(known))
        if wrong := [label for label in classes if not 0 <= label < known]:
            raise ConfigError(f"classes {wrong}: the model has 0..{known - 1}")
        if texts and len(classes) > 1 < len(texts) != len(classes):
            raise ConfigError(f"{len(classes)} classes for {len(texts)} texts")
        number = max(len(classes), number)
        batch["label"] = np.asarray(classes, np.int32)
        names["class"] = list(classes)
    labels = batch.get("label", np.arange(number, dtype=np.int32))
    batch = {name: np.resize(x, (number, *x.shape[1:])) for name, x in batch.items()}
    return Conditions(
        np.asarray(conditions.make(config, batch)),
        np.resize(labels, number),
        [{name: x[i % len(x)] for name, x in names.items()} for i in range(number)],
    )


def wanted(experiment, num_samples: int, classes=(), texts=()) -> Wanted:
    """Samples spread evenly over classes and texts, in the order given.

    Args:
      experiment, classes, texts: see `conditions_of`.
      num_samples: N.

    Raises:
      ConfigError: as `conditions_of`.
    """
    cond, labels, _ = conditions_of(experiment, classes, texts)
    rows = np.sort(np.resize(np.arange(len(labels)), num_samples))
    return Wanted(labels[rows], None if cond is None else cond[rows])


def shown(experiment, rows: int) -> tuple[tuple, tuple, list[str]]:
    """What to picture a model by: classes, texts, and a name for each row.

    The first classes; of a model with text the first captions of the evaluation split,
    with their classes.
    """
    config = experiment.config
    needs = conditions.NEEDS[config.transformer.condition]
    if "text" in needs:
        source = experiment.code_source(config.data.eval_split)
        some = [source.read(i) for i in range(min(rows, len(source)))]
        texts = tuple(captions[0] for _, captions in some if captions)
        classes = tuple(int(example["label"]) for example, lines in some if lines)
        return classes if "label" in needs else (), texts, list(texts)
    classes = tuple(range(min(config.data.num_classes, rows))) if needs else ()
    return classes, (), [str(label) for label in classes]


def _batch_size(experiment, number: int, wanted: int | None = None) -> int:
    """Images at once: no more than needed, rounded up to divide over the devices."""
    size = min(wanted or experiment.config.sampling.batch_size, number)
    parts = sharding.batch_parts(experiment.mesh)
    return -(-size // parts) * parts


def draw(
    experiment,
    cond: np.ndarray | None,
    number: int,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    given: Given | None = None,
    first: int = 0,
    **changes,
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Images and codes of samples, a batch at a time, on the devices.

    Every batch has the one shape that is compiled: the last is padded with copies.

    Args:
      experiment: a `rq.experiment.Experiment` with both stages.
      cond: see `Wanted`.
      number: N.
      seed, batch_size, given, changes: see `Experiment.sample`.
      first: place of the first among all samples of the seed.
    """
    stage = experiment.transformer
    options = stage.sampling_options(**changes)
    batch_size = _batch_size(experiment, number, batch_size)
    variables = stage.unrolled(experiment.transformer_state.model_variables())
    codes = keep = None
    if given is not None:
        codes = np.broadcast_to(given.codes, (batch_size, *given.codes.shape))
        keep = given.keep
    for start in range(0, number, batch_size):
        indices = np.arange(start, start + batch_size) % number
        with sharding.context(experiment.mesh):
            yield stage.sample(
                variables,
                None if cond is None else cond[indices],
                jax.random.key(seed),
                first_index=first + start,
                options=options,
                batch=batch_size,
                codes=codes,
                keep=keep,
            )


def sample(experiment, wanted: Wanted, **options) -> tuple[np.ndarray, np.ndarray]:
    """All of `draw` on the host: images `[N, R, R, C]` and codes `[N, H, W, D]`."""
    number = len(wanted.labels)
    # All are dispatched before one is read.
    batches = list(draw(experiment, wanted.cond, number, **options))
    images, codes = (
        np.concatenate([sharding.to_host(part) for part in parts])[:number]
        for parts in zip(*batches, strict=True)
    )
    return images, codes


class Candidates(NamedTuple):
    """Of which the best are kept; those of one condition follow each other.

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


def candidates(experiment, wanted: Wanted, keep: float) -> Candidates:
    """What rejection sampling draws (paper section 4.2): 1 / `keep` times as many.

    Args:
      experiment: of a model with classes.
      wanted: samples, those of one condition after each other.
      keep: the share of each condition's candidates that is kept.

    Raises:
      ConfigError: on a share out of range, or a model without classes.
    """
    if not 0 < keep <= 1:
        raise ConfigError(f"--keep={keep}: must be within (0, 1]")
    kind = experiment.config.transformer.condition
    if "label" not in conditions.NEEDS[kind]:
        raise ConfigError(f"--keep ranks by class, but the condition is {kind!r}")
    new = (wanted.cond[1:] != wanted.cond[:-1]).reshape(len(wanted.cond) - 1, -1)
    first = np.flatnonzero(np.append(True, new.any(axis=1)))
    kept = np.diff(np.append(first, len(wanted.labels)))
    drawn = np.ceil(kept / keep - 1e-9).astype(int)
    return Candidates(
        np.repeat(wanted.labels[first], drawn),
        np.repeat(wanted.cond[first], drawn, axis=0),
        drawn,
        kept,
    )


def draw_scored(
    experiment, among: Candidates, rows: range, classifier: Classifier, **options
) -> tuple[np.ndarray, np.ndarray]:
    """Draws some candidates: codes int32 `[n, H, W, D]`, log-probabilities `[n]`.

    The images, of which the probabilities of their classes are, do not stay.

    Args:
      experiment: see `draw`.
      among: all of them.
      rows: which.
      classifier: see `rq.sampling.classifier`.
      **options: of `draw`, but for `first`.
    """
    part = slice(rows.start, rows.stop)
    labels, codes, scores = among.labels[part], [], []
    drawn = draw(experiment, among.cond[part], len(rows), first=rows.start, **options)
    for images, found in drawn:
        begin = sum(map(len, codes))
        own = labels[np.arange(begin, begin + len(found)) % len(labels)]
        codes.append(found)
        scores.append(jnp.take_along_axis(classifier(images), own[:, None], 1)[:, 0])
    codes, scores = (
        np.concatenate([sharding.to_host(one) for one in parts])[: len(rows)]
        for parts in (codes, scores)
    )
    return codes, scores


def best(among: Candidates, scores: np.ndarray) -> np.ndarray:
    """Places of those that are kept, by condition, the surest of each first."""
    places, start = [], 0
    for number, kept in zip(among.drawn, among.kept, strict=True):
        order = np.argsort(-scores[start : start + number], kind="stable")
        places.append(start + order[:kept])
        start += number
    return np.concatenate(places)


def decode(
    experiment, codes: np.ndarray, batch_size: int | None = None
) -> Iterator[jax.Array]:
    """Images `[B, R, R, C]` of codes `[N, H, W, D]`, on the devices, by batches.

    The last batch is filled with copies.
    """
    size = _batch_size(experiment, len(codes), batch_size)
    for part in np.split(codes, np.arange(size, len(codes), size)):
        batch = {"codes": np.resize(part, (size, *part.shape[1:]))}
        batch = sharding.shard_batch(batch, experiment.mesh, whole=True)["codes"]
        yield experiment.transformer.decode(batch)


def sample_best(
    experiment,
    wanted: Wanted,
    classifier: Classifier,
    keep: float,
    **options,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rejection sampling (paper section 4.2): of 1 / `keep` times as many the best.

    Of the candidates only codes and scores stay in memory; what is kept is decoded.

    Args:
      experiment: see `draw`.
      wanted: samples, of a model with classes.
      classifier: see `rq.sampling.classifier`.
      keep: the share of each class's candidates that is kept, above 0, at most 1.
      **options: of `draw`.

    Returns:
      images `[N, R, R, C]`, their classes `[N]`, codes `[N, H, W, D]` and each one's
      probability of its class `[N]`; in a class the best come first.

    Raises:
      ConfigError: on a share out of range, or a model without classes.
    """
    among = candidates(experiment, wanted, keep)
    rows = range(len(among.labels))
    codes, scores = draw_scored(experiment, among, rows, classifier, **options)
    places = best(among, scores)
    batches = decode(experiment, codes[places], options.get("batch_size"))
    images = np.concatenate([sharding.to_host(batch) for batch in batches])
    return (
        images[: len(places)],
        among.labels[places],
        codes[places],
        np.exp(scores[places]),
    )
