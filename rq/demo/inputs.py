# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""What users enter, as samples to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rq.config import ConfigError, SamplingConfig
from rq.library import Model
from rq.sampling import conditions
from rq.sampling.inpainting import Given
from rq.sampling.sampler import Wanted

MAX_CLASSES, MAX_TEXTS, MAX_LETTERS = 1000, 64, 1000


def whole_number(value: Any, name: str, low: int, high: int) -> int:
    """Returns a number that a user has entered.

    Raises:
      ConfigError: if it is not a whole number within low..high.
    """
    try:
        number = int(value)
        if number != float(value) or not low <= number <= high:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(
            f"{name} is {str(value)[:20]!r}: a whole number from {low} to {high}"
        ) from None
    return number


def read_classes(text: str) -> tuple[int, ...]:
    """Returns classes that are separated by commas or spaces.

    Raises:
      ConfigError: where there is something else.
    """
    words = str(text or "").replace(",", " ").split()
    if len(words) > MAX_CLASSES:
        raise ConfigError(f"{len(words)} classes: at most {MAX_CLASSES}")
    return tuple(whole_number(word, "a class", 0, 2**31 - 1) for word in words)


def read_texts(text: str) -> tuple[str, ...]:
    """Returns texts, one a line, empty ones left out.

    Raises:
      ConfigError: if there are too many, or one is too long.
    """
    lines = [line.strip() for line in str(text or "").splitlines()]
    lines = [line for line in lines if line]
    if len(lines) > MAX_TEXTS or any(len(line) > MAX_LETTERS for line in lines):
        raise ConfigError(f"at most {MAX_TEXTS} texts of {MAX_LETTERS} letters")
    return tuple(lines)


def make_wanted(
    model: Model,
    classes: Sequence[int],
    texts: Sequence[str],
    number: int,
    options: Mapping[str, Any],
    given: Given | None = None,
) -> tuple[list[Wanted], list[str]]:
    """Returns the samples of `model.sample`, in its order, and a name for each.

    Args:
      model: with a transformer.
      classes, texts: see `rq.Model.sample`; empty: all classes.
      number: of samples.
      options: of `SamplingConfig`; those of the model's config if not given, but for
        what is not row by row.
      given: codes of which some are kept in all samples.

    Raises:
      ConfigError: on what the model does not have.
    """
    models = model.models
    # The page draws row by row and to the full depth, whatever is faster otherwise.
    plain = SamplingConfig()
    whole = {
        name: getattr(plain, name) for name in ("parallel_steps", "levels", "depth")
    }
    config = SamplingConfig(**model.config.sampling).replace(**whole | dict(options))
    asked = conditions.parse(
        model.config, models.tokenizer, tuple(classes), tuple(texts)
    )
    rows = asked.spread(number)
    wanted = [
        Wanted(None if asked.cond is None else asked.cond[row], i, config, given)
        for i, row in enumerate(rows)
    ]
    return wanted, [", ".join(map(str, asked.names[row].values())) for row in rows]
