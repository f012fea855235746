# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The config in a workdir: JSON, and what may differ between two runs in it."""

from __future__ import annotations

import json

from ml_collections import ConfigDict

from rq.config.schema import ConfigError, check_types, default, fields

# What may change between two runs in one workdir: it does not change the trained
# weights, except for the rounding of sums in another order.
PRACTICAL = (
    "stages",
    "mesh",
    "data.dir",
    "data.path",
    "data.threads",
    "data.prefetch",
    "rqvae.lpips_weights",
    "codes.batch_size",
    "transformer.model.remat",
    "transformer.loss.pieces",
    "sampling",
    "checkpoint",
    "log",
    "profile",
)

# Fields that are younger than some workdirs, by the end of their names, with the values
# that those were trained with.
LATER = {"optimizer.mu_dtype": "float32"}


def to_json(config: ConfigDict) -> str:
    """The config as JSON, which `from_json` turns into an equal one."""
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True, allow_nan=False)
    return text + "\n"


def from_json(text: str) -> ConfigDict:
    """The config that `to_json` wrote, locked, with tuples and types restored.

    Fields that it lacks, being older than they are, get their defaults where they are
    `PRACTICAL`, and what was in force before where `LATER` has it. Any other would
    silently become part of how the weights were made.

    Raises:
      ConfigError: on text that is no JSON object, and on unknown, missing or mistyped
        fields. Values are left to `validate`.
    """
    try:
        given = json.loads(text)
        if not isinstance(given, dict):
            raise ValueError(f"a {type(given).__name__} where an object belongs")
    except ValueError as error:
        raise ConfigError(f"the config is no JSON object: {error}") from None
    config = default()
    given = fields(given)
    for name, example in fields(config).items():
        if name not in given and _is_practical(name):
            given[name] = example
        elif name not in given and (before := _before(name)) is not None:
            given[name] = before
        elif isinstance(example, tuple) and isinstance(given.get(name), list):
            given[name] = tuple(given[name])
    check_types(given)
    config.update_from_flattened_dict(given)
    return config


def _is_practical(name: str) -> bool:
    return any(name == p or name.startswith(f"{p}.") for p in PRACTICAL)


def _before(name: str):
    """The value that `LATER` has of a field, or None."""
    return next((v for end, v in LATER.items() if name.endswith(f".{end}")), None)


def differences(a: ConfigDict, b: ConfigDict) -> list[str]:
    """Fields outside `PRACTICAL` that differ, as 'rqvae.steps: 100 != 200'."""
    a, b = fields(a), fields(b)
    return [
        f"{name}: {a.get(name)!r} != {b.get(name)!r}"
        for name in sorted(a.keys() | b.keys())
        if not _is_practical(name) and a.get(name) != b.get(name)
    ]
