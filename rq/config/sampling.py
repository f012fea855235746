# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Declares the sampling options, the section `sampling` of the config.

A new option is declared here and applied in `rq.sampling.filters`. The declaration also
makes its config field, its flag (`rq sample --NAME`) and its line in docs/config.md.
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
# Divided by smaller temperatures, logits would overflow float32.
_TEMPERATURE = Range(lambda x: x >= 1e-6, "1e-6 or more")


def _option(default, doc: str, limit: Range, commands=(), **details):
    changed_by = ("train", "sample", "evaluate", *commands)
    field = Field(default, doc, limit, changed_by=changed_by, **details)
    return dataclasses.field(default=default, metadata={"field": field})


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Options of sampling; see the declarations below.

    Filters and guidance are tuples of one value, or one per depth. A number is accepted
    in place of a tuple of one.

    Raises:
      ConfigError: if a value has the wrong type or is out of range.
    """

    temperature: tuple[float, ...] = _option(
        (1.0,), "divides the logits; one value, or one per depth", _TEMPERATURE
    )
    top_k: tuple[int, ...] = _option(
        (0,), "sample from the k most likely codes, by depth; 0: all", NOT_NEGATIVE
    )
    top_p: tuple[float, ...] = _option(
        (1.0,),
        "sample from the most likely codes up to this total probability, by depth; "
        "1: all",
        PROBABILITY,
    )
    min_p: tuple[float, ...] = _option(
        (0.0,),
        "sample from codes with at least this fraction of the highest probability, by "
        "depth; 0: all",
        FRACTION,
    )
    typical_p: tuple[float, ...] = _option(
        (1.0,),
        "keeps the codes whose information is closest to the entropy, up to this "
        "probability, by depth; 1: all",
        PROBABILITY,
        since="0.2",
    )
    guidance: tuple[float, ...] = _option(
        (1.0,), "scale of classifier-free guidance, by depth; 1: off", NOT_NEGATIVE
    )
    guidance_schedule: str = _option(
        "constant",
        "how guidance grows from 1 at the first position to its scale at the last",
        one_of(*SCHEDULES),
    )
    parallel_steps: int = _option(
        0,
        "body steps in which all positions are drawn, several at once; needs "
        "transformer.order; 0: one by one",
        NOT_NEGATIVE,
        since="0.2",
    )
    depth: int = _option(
        0,
        "codes drawn at each position, the first ones, which are then decoded; fewer "
        "are faster and coarser; 0: all",
        NOT_NEGATIVE,
        since="0.2",
    )
    levels: tuple[int, ...] = _option(
        (0,),
        "all positions are first drawn at the first of these depths, then at the next, "
        "and so on, each given the others as fine as they are then; the last is the "
        "depth drawn; needs transformer.order, and transformer.depth_dropout to be "
        "good; 0: each position at once",
        NOT_NEGATIVE,
        since="0.2",
    )
    batch_size: int = _option(100, "samples generated at once", POSITIVE, ("rank",))
    seed: int = _option(
        0,
        "random seed of samples, which do not depend on the batch size",
        SEED,
        since="0.2",
    )

    def __post_init__(self):
        for name, field in OPTIONS.items():
            value = getattr(self, name)
            if isinstance(field.default, tuple):
                value = tuple(value) if isinstance(value, list | tuple) else (value,)
                object.__setattr__(self, name, value)
            field.check(f"sampling.{name}", value)

    def replace(self, **changes) -> SamplingConfig:
        """Returns a copy with changed options; those that are None are unchanged."""
        given = {name: x for name, x in changes.items() if x is not None}
        return dataclasses.replace(self, **given)

    def check_depth(self, depth: int) -> None:
        """Checks the options against a model's depth.

        Raises:
          ConfigError: if one has neither 1 nor `depth` values, or more are to be drawn.
        """
        if self.depth > depth:
            raise ConfigError(f"sampling.depth = {self.depth}: the model has {depth}")
        drawn, levels = self.depth or depth, self.levels
        if self.levels != (0,) and (
            not levels
            or levels[0] < 1
            or levels[-1] != drawn
            or sorted(set(levels)) != [*levels]
        ):
            raise ConfigError(
                f"sampling.levels = {levels}: give growing depths, 1 or more, of which "
                f"the last is the depth drawn, {drawn}"
            )
        for name, field in OPTIONS.items():
            value = getattr(self, name)
            if name == "levels" or not isinstance(field.default, tuple):
                continue
            if len(value) not in (1, depth):
                raise ConfigError(
                    f"sampling.{name} = {value!r}: has {len(value)} values; give 1, or "
                    f"one for each depth: {depth}"
                )

    def settings(self) -> dict[str, Any]:
        """Returns the options that identify results: all but batch size and seed.

        Options added after version 0.1 are left out at their defaults, so that results
        from before they existed are still found.
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
