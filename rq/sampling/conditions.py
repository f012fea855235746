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
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rq.config import ConfigError

NEEDS = {"none": (), "class": ("label",), "text": ("text",)}
NEEDS["class_text"] = NEEDS["class"] + NEEDS["text"]
FIELDS = {"classes": "label", "texts": "text"}  # of a batch, by what they are


def make(config, batch) -> jax.Array | None:
    """Returns the condition of a batch with 'label' `[B]` and 'text' `[B, S]`.

    Raises:
      ValueError: where the batch lacks one of them.
    """
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
    part = config.transformer
    if not part.condition_dropout:
        return None
    text = np.zeros(part.text.length, np.int32) if null_text is None else null_text
    number = np.int32(config.data.num_classes)
    nulls: dict[str, Any] = {
        "class": number,
        "text": text,
        "class_text": np.concatenate([[part.text.vocab_size + number], text]),
    }
    return nulls[part.condition].astype(np.int32)


def leave_out(cond: jax.Array, null_cond, fraction: float, key) -> jax.Array:
    """Returns conditions `[B, ...]`, a random fraction replaced by `null_cond`."""
    left_out = jax.random.bernoulli(key, fraction, cond.shape[:1])
    left_out = left_out.reshape(-1, *[1] * (cond.ndim - 1))
    return jnp.where(left_out, null_cond, cond)


def leave_out_parts(cond: jax.Array, null_cond, fraction: float, key) -> jax.Array:
    """Returns conditions of both `[B, 1 + S]`, some without the class or the text.

    A random fraction has neither, as in `leave_out`; as many have no class, and as many
    no text.
    """
    drawn = jax.random.uniform(key, (len(cond), 1))
    no_class = (drawn < fraction) | ((drawn >= 2 * fraction) & (drawn < 3 * fraction))
    no_text = drawn < 2 * fraction
    is_class = jnp.arange(cond.shape[1]) == 0
    return jnp.where(jnp.where(is_class, no_class, no_text), null_cond, cond)


class Conditions(NamedTuple):
    """N different conditions.

    Attributes:
      cond: int32 `[N]` classes or `[N, S]`; None of an unconditional model (N = 1).
      labels: int32 `[N]`, the class of each, or its index where there are no classes.
      names: of each, 'class' and 'text' as the model has them.
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


def parse(config, tokenizer=None, classes=(), texts=()) -> Conditions:
    """Returns classes and texts, as users give them, as the model reads them.

    Args:
      config: of the experiment.
      tokenizer: of a model that has text.
      classes: of a model that has them; all where empty.
      texts: of a model that has text; with classes, as many as those, or one of either.
        Models of both that were trained with `condition_dropout` need only one.

    Raises:
      ConfigError: on what the model does not have, or lacks.
    """
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
        nothing: Any = null(config, tokenizer.null)
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
        np.asarray(make(config, batch)),
        np.resize(labels, number),
        [{name: x[i % len(x)] for name, x in names.items()} for i in range(number)],
    )
