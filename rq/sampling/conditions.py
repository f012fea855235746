# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""What images are conditioned on, as the transformer reads it, and as users give it.

    transformer.condition   condition, int32                   without condition
    none                    None: the start token              -
    class                   [B], the class                     num_classes
    text                    [B, S], tokens                     padding alone
    class_text              [B, 1 + S], vocab_size + class,    vocab_size + num_classes,
                            then tokens                        then padding

The last column stands for none at all, in training with `condition_dropout` and in
guidance; classes have one more for it only then. Models of both, trained with it, also
take a class alone or a text alone.

With source images (`data.source`) all of these are `[B, P D' + S]`: the codes of the
source image come first, -1 where it is left out, and the start token is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rq.config import ConfigError
from rq.models.build import source_sizes

NEEDS = {"none": (), "class": ("label",), "text": ("text",)}
NEEDS["class_text"] = NEEDS["class"] + NEEDS["text"]
FIELDS = {"classes": "label", "texts": "text"}  # of a batch, by what they are
ABSENT = -1  # codes of a source image that is left out


def make(config, batch) -> jax.Array | None:
    """Returns the condition of a batch.

    Args:
      config: of the experiment.
      batch: 'label' `[B]`, 'text' `[B, S]` and 'source_codes' `[B, H', W', D']`, as
        the model needs them.

    Raises:
      ValueError: where the batch lacks one of them.
    """
    given = _of_labels(config, batch)
    if config.data.source == "none":
        return given
    if "source_codes" not in batch:
        raise ValueError(f"data.source needs 'source_codes' in {sorted(batch)}")
    source = batch["source_codes"].reshape(len(batch["source_codes"]), -1)
    if given is None:
        given = jnp.zeros((len(source), 1), jnp.int32)
    return jnp.concatenate([source, given.reshape(len(source), -1)], axis=1)


def _of_labels(config, batch) -> jax.Array | None:
    """Returns the condition without the source image."""
    kind = config.transformer.condition
    if missing := [name for name in NEEDS[kind] if name not in batch]:
        raise ValueError(
            f"transformer.condition={kind!r} needs {missing} in the data, which has "
            f"{sorted(batch)}"
        )
    if kind == "none":
        return None
    if kind == "class":
        return batch["label"]
    if kind == "text":
        return batch["text"]
    label = batch["label"][:, None] + config.transformer.text.vocab_size
    return jnp.concatenate([label, batch["text"]], axis=1)


def null(config, null_text=None) -> np.ndarray | None:
    """Returns what stands for no condition of an image; None without dropout of it.

    Args:
      config: of the experiment.
      null_text: tokens of no text `[S]`; zeros where None.
    """
    if not config.transformer.condition_dropout:
        return None
    found = _null_of_labels(config, null_text)
    if number := source_codes(config):
        absent = np.full(number, ABSENT, np.int32)
        return np.concatenate([absent, found.reshape(-1)])
    return found


def _null_of_labels(config, null_text=None) -> np.ndarray:
    """Returns what stands for no condition, without the source image."""
    part = config.transformer
    text = np.zeros(part.text.length, np.int32) if null_text is None else null_text
    number = np.int32(config.data.num_classes)
    nulls: dict[str, Any] = {
        "none": np.zeros(1, np.int32),
        "class": number,
        "text": text,
        "class_text": np.concatenate([[part.text.vocab_size + number], text]),
    }
    return nulls[part.condition].astype(np.int32)


def source_codes(config) -> int:
    """Returns how many codes of a source image a condition begins with."""
    shape, _ = source_sizes(config)
    return math.prod(shape) if shape else 0


def leave_out(cond: jax.Array, null_cond, fraction: float, key) -> jax.Array:
    """Returns conditions `[B, ...]`, a random fraction replaced by `null_cond`."""
    left_out = jax.random.bernoulli(key, fraction, cond.shape[:1])
    left_out = left_out.reshape(-1, *[1] * (cond.ndim - 1))
    return jnp.where(left_out, null_cond, cond)


def leave_out_parts(
    cond: jax.Array, null_cond, fraction: float, key, lengths: Sequence[int]
) -> jax.Array:
    """Returns conditions of several parts `[B, S]`, some without one or all of them.

    A random fraction has none, as in `leave_out`; as many lack each part alone. Of
    three parts half of these lack the other two instead, so that the model takes any
    parts alone.

    Args:
      cond, null_cond, fraction, key: see `leave_out`.
      lengths: of the parts, see `part_lengths`.
    """
    drawn = jax.random.uniform(key, (len(cond), 1))
    part = np.repeat(np.arange(len(lengths), 0, -1), lengths)  # the last one is 1
    alone = (drawn >= part * fraction) & (drawn < (part + 1) * fraction)
    if len(lengths) > 2:
        is_one = (drawn >= fraction) & (drawn < (len(lengths) + 1) * fraction)
        others = is_one & (drawn / fraction % 1 >= 0.5)
        alone = alone ^ others  # all but that part
    return jnp.where((drawn < fraction) | alone, null_cond, cond)


def part_lengths(config) -> tuple[int, ...]:
    """Returns the lengths of the parts of a condition: source, class, text."""
    kind, found = config.transformer.condition, []
    if number := source_codes(config):
        found.append(number)
    if kind in ("class", "class_text"):
        found.append(1)
    if "text" in kind:
        found.append(config.transformer.text.length)
    return tuple(found)


class Sources(NamedTuple):
    """N source images.

    Attributes:
      codes: int32 `[N, H', W', D']`.
      names: of each.
      images: uint8 `[N, H, W, C]`.
    """

    codes: np.ndarray
    names: tuple[str, ...]
    images: np.ndarray


class Conditions(NamedTuple):
    """N different conditions.

    Attributes:
      cond: int32 `[N]` classes or `[N, S]`; None of an unconditional model (N = 1).
      labels: int32 `[N]`, the class of each, or its index where there are no classes.
      names: of each, 'class', 'text' and 'source' as the model has them.
    """

    cond: np.ndarray | None
    labels: np.ndarray
    names: list[dict]

    def at(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns labels and conditions of samples, given which condition each has."""
        return self.labels[rows], None if self.cond is None else self.cond[rows]

    def spread(self, number: int) -> np.ndarray:
        """Returns which condition each of some samples has, evenly, in order."""
        return np.sort(np.resize(np.arange(len(self.labels)), number))

    def ranked(self, by_depth: np.ndarray, positions: int) -> list[dict]:
        """Returns the conditions of one image, the likeliest first.

        Args:
          by_depth: log p of the image by condition and depth `[N, D]`, in nats.
          positions: T.
        """
        total = by_depth.sum(axis=1)
        bits = -by_depth / (positions * math.log(2))
        return [
            self.names[i]
            | {"log_likelihood": float(total[i]), "bits_per_code": bits[i].tolist()}
            for i in np.argsort(-total, kind="stable")
        ]


def parse(
    config, tokenizer=None, classes=(), texts=(), sources: Sources | None = None
) -> Conditions:
    """Returns classes, texts and source images, as users give them, for the model.

    Args:
      config: of the experiment.
      tokenizer: of a model that has text.
      classes: of a model that has them; all where empty.
      texts: of a model that has text; with classes, as many as those, or one of either.
        Models of both that were trained with `condition_dropout` need only one.
      sources: of a model that has source images; with classes or texts, as many as
        those, or one of either. Models that were trained with `condition_dropout` need
        only one of all conditions.

    Raises:
      ConfigError: on what the model does not have, or lacks.
    """
    has_source = config.data.source != "none"
    if sources is not None and not has_source:
        raise ConfigError("a source image of a model whose data.source is 'none'")
    optional = config.transformer.condition_dropout > 0
    others = bool(classes or texts)
    if has_source and sources is None and not (optional and others):
        raise ConfigError(
            f"this model is conditioned on source images ({config.data.source}): "
            "give --source=IMAGE"
        )
    labelled = config.transformer.condition != "none"
    if sources is not None and optional and labelled and not others:
        null_text = None if tokenizer is None else tokenizer.null
        cond = _null_of_labels(config, null_text)
        found = Conditions(cond[None], np.zeros(1, np.int32), [{}])
    else:
        found = _parse_labels(config, tokenizer, classes, texts)
    return _with_sources(config, found, sources) if has_source else found


def _with_sources(config, found: Conditions, sources: Sources | None) -> Conditions:
    """Returns conditions with the codes of source images before them."""
    given, names = found.cond, found.names
    if given is None:
        given = np.zeros((1, 1), np.int32)
    if sources is None:
        codes = np.full((1, source_codes(config)), ABSENT, np.int32)
        each: list[dict] = [{}]
    else:
        codes = sources.codes.reshape(len(sources.codes), -1)
        each = [{"source": name} for name in sources.names]
    if len(given) > 1 < len(codes) != len(given):
        raise ConfigError(
            f"{len(codes)} source images for {len(given)} classes or texts"
        )
    number = max(len(given), len(codes))
    rows = np.arange(number)
    given = given.reshape(len(given), -1)
    cond = np.concatenate(
        [codes[rows % len(codes)], given[rows % len(given)]], axis=1
    ).astype(np.int32)
    named = any("class" in name for name in names)
    labels = found.labels[rows % len(given)] if named else rows.astype(np.int32)
    return Conditions(
        cond, labels, [names[i % len(names)] | each[i % len(each)] for i in rows]
    )


def _parse_labels(config, tokenizer, classes, texts) -> Conditions:
    """Returns classes and texts as the model reads them, without source images."""
    kind = config.transformer.condition
    for name, given in (("classes", classes), ("texts", texts)):
        if given and FIELDS[name] not in NEEDS[kind]:
            raise ConfigError(f"{name} {given} of a model whose condition is {kind!r}")
    if kind == "none":
        return Conditions(None, np.zeros(1, np.int32), [{}])
    batch, number, names = {}, len(texts), {}
    known = config.data.num_classes
    takes_one = kind == "class_text" and config.transformer.condition_dropout > 0
    if takes_one and not texts:
        nothing: Any = _null_of_labels(config, tokenizer.null)
        batch["text"] = nothing[None, 1:]
    elif "text" in NEEDS[kind]:
        if not texts:
            raise ConfigError("this model is conditioned on text: give --text=...")
        batch["text"] = np.stack([tokenizer(line) for line in texts])
        names["text"] = list(texts)
    if takes_one and texts and not classes:
        batch["label"] = np.asarray([known], np.int32)
    elif "label" in NEEDS[kind]:
        classes = tuple(classes) or tuple(range(known))
        if wrong := [label for label in classes if not 0 <= label < known]:
            raise ConfigError(f"classes {wrong}: the model has 0..{known - 1}")
        if texts and len(classes) > 1 < len(texts) != len(classes):
            raise ConfigError(f"{len(classes)} classes for {len(texts)} texts")
        number = max(len(classes), number)
        batch["label"] = np.asarray(classes, np.int32)
        names["class"] = list(classes)
    labels = np.arange(number, dtype=np.int32)
    labels = batch["label"] if "class" in names else labels
    batch = {name: np.resize(x, (number, *x.shape[1:])) for name, x in batch.items()}
    return Conditions(
        np.asarray(_of_labels(config, batch)),
        np.resize(labels, number),
        [{name: x[i % len(x)] for name, x in names.items()} for i in range(number)],
    )
