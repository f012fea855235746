# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The options of sampling: the config's section `sampling`, declared once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from rq.config.errors import ConfigError

SCHEDULES = ("constant", "linear", "cosine")
MAX_SEED = 2**32 - 1  # JAX's keys are made from 32 bits


def _option(
    default, doc: str, ok: Callable[[Any], bool], words: str, since: str = "0.1"
):
    """A field: default, documentation, (predicate, words) of its range, version."""
    metadata = {"doc": doc, "range": (ok, words), "since": since}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How codes are drawn from a trained model.

    Filters and guidance take one number, or one for each depth; a number is stored as a
    tuple of one. Every filter has a value that turns it off, which is its default.

    Raises:
      ConfigError: on a value out of range.
    """

    temperature: tuple[float, ...] = _option(
        (1.0,), "divides the logits", lambda x: x > 0, "must be positive"
    )
    top_k: tuple[int, ...] = _option(
        (0,),
        "keeps the k most probable codes, and ties with the last; 0: off",
        lambda x: x >= 0,
        "must not be negative",
    )
    top_p: tuple[float, ...] = _option(
        (1.0,),
        "keeps the most probable codes until their mass reaches p; 1: off",
        lambda x: 0 < x <= 1,
        "must be within (0, 1]",
    )
    min_p: tuple[float, ...] = _option(
        (0.0,),
        "keeps codes of at least this fraction of the highest probability; 0: off",
        lambda x: 0 <= x <= 1,
        "must be within [0, 1]",
    )
    guidance: tuple[float, ...] = _option(
        (1.0,),
        "scale of classifier-free guidance; 1: off",
        lambda x: x >= 0,
        "must not be negative",
    )
    guidance_schedule: str = _option(
        "constant",
        "how the scale grows over positions: 'constant', or from 1 to the scale "
        "'linear' or 'cosine' (slowly at first)",
        lambda x: x in SCHEDULES,
        f"must be one of {', '.join(map(repr, SCHEDULES))}",
    )
    seed: int = _option(
        0,
        "sample i of a seed is the same whatever the batch size and the devices",
        lambda x: 0 <= x <= MAX_SEED,
        f"must be within [0, {MAX_SEED}]",
        since="0.2",
    )
    batch_size: int = _option(
        100, "images at once", lambda x: x > 0, "must be positive"
    )

    def __post_init__(self):
        """Stores numbers as tuples where a field takes one for each depth; checks."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, tuple):
                value = tuple(value) if isinstance(value, list | tuple) else (value,)
                object.__setattr__(self, field.name, value)
            in_range, words = field.metadata["range"]
            for one in value if isinstance(value, tuple) else (value,):
                finite = not isinstance(one, float) or math.isfinite(one)
                if not finite or not in_range(one):
                    raise ConfigError(f"{field.name} = {value!r}: {words}")

    def replace(self, **changes) -> SamplingConfig:
        """Returns a copy with other values; None leaves a field as it is."""
        given = {name: x for name, x in changes.items() if x is not None}
        return dataclasses.replace(self, **given)

    def check_depth(self, depth: int) -> None:
        """Raises ConfigError where a field has neither 1 nor `depth` values."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple) and len(value) not in (1, depth):
                raise ConfigError(
                    f"{field.name} = {value!r}: {len(value)} values for depth {depth}; "
                    "give 1, or one for each depth"
                )
