# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The sampling options, which are the section `sampling` of the config.

A new option is declared here, gets its filter in `rq.sampling.filters`, and has then
its field in the config, its flag (`rq sample --NAME`) and its line in docs/config.md.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from rq.config.declaration import (
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    SEED,
    Field,
    Range,
    one_of,
)
from rq.config.errors import ConfigError

SCHEDULES = ("constant", "linear", "cosine")
# Smaller temperatures would take logits beyond float32.
_TEMPERATURE = Range(lambda x: x >= 1e-6, "1e-6 or more", "must be positive (>= 1e-6)")


def _option(default, doc: str, limit: Range, commands=(), **details):
    changed_by = ("train", "sample", "evaluate", *commands)
    field = Field(default, doc, limit, changed_by=changed_by, **details)
    return dataclasses.field(default=default, metadata={"field": field})


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How samples are drawn.

    Filters and guidance are tuples of one value, or of one for each depth; a number may
    be given in place of a tuple of one.

    Raises:
      ConfigError: on a value of another type, or out of range.
    """

    temperature: tuple[float, ...] = _option(
        (1.0,), "divides the logits; one value or one for each depth", _TEMPERATURE
    )
    top_k: tuple[int, ...] = _option(
        (0,), "keeps the k most likely codes, by depth; 0: all", NOT_NEGATIVE
    )
    top_p: tuple[float, ...] = _option(
        (1.0,),
        "keeps the most likely codes up to this probability, by depth; 1: all",
        PROBABILITY,
    )
    min_p: tuple[float, ...] = _option(
        (0.0,),
        "keeps codes of at least this fraction of the highest probability, by depth; "
        "0: all",
        FRACTION,
    )
    guidance: tuple[float, ...] = _option(
        (1.0,), "scale of classifier-free guidance, by depth; 1: off", NOT_NEGATIVE
    )
    guidance_schedule: str = _option(
        "constant",
        "how guidance grows from 1 at the first position to its scale at the last",
        one_of(*SCHEDULES),
    )
    batch_size: int = _option(100, "samples drawn at once", POSITIVE, ("rank",))
    seed: int = _option(
        0, "of `rq sample` and `rq evaluate`, whatever the batch", SEED, since="0.2"
    )

    def __post_init__(self):
        for name, field in OPTIONS.items():
            value = getattr(self, name)
            if isinstance(field.default, tuple):
                value = tuple(value) if isinstance(value, list | tuple) else (value,)
                object.__setattr__(self, name, value)
            field.check(f"sampling.{name}", value)

    def replace(self, **changes) -> SamplingConfig:
        """Returns a copy with other values; None leaves an option as it is."""
        given = {name: x for name, x in changes.items() if x is not None}
        return dataclasses.replace(self, **given)

    def check_depth(self, depth: int) -> None:
        """Raises ConfigError where an option has neither 1 nor `depth` values."""
        for name, field in OPTIONS.items():
            value = getattr(self, name)
            if isinstance(field.default, tuple) and len(value) not in (1, depth):
                raise ConfigError(
                    f"sampling.{name} = {value!r}: has {len(value)} values; give 1, or "
                    f"one for each depth: {depth}"
                )

    def settings(self) -> dict[str, Any]:
        """Returns what identifies results: all but the batch size and the seed.

        Options younger than version 0.1 are left out where they are at their defaults,
        so that results from before they existed are still found.
        """
        known = {name: getattr(self, name) for name in OPTIONS}
        return {
            name: value
            for name, value in known.items()
            if name not in ("batch_size", "seed")
            and (OPTIONS[name].since == "0.1" or value != OPTIONS[name].default)
        }


OPTIONS: dict[str, Field] = {
    field.name: field.metadata["field"] for field in dataclasses.fields(SamplingConfig)
}
