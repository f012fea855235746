# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads and writes the config of a run directory, and compares configs."""

from __future__ import annotations

import json
import pathlib

from ml_collections import ConfigDict

from rq.config.errors import ConfigError
from rq.config.schema import FIELDS, RENAMED, default, fields
from rq.config.validation import check_types

# Stored as absolute paths, so that later commands work from any folder.
PATHS = (
    "data.path",
    "data.dir",
    "data.source_path",
    "rqvae.lpips_weights",
    "transformer.codes_file",
    "init_from",
    "transformer.source_rqvae",
)
SOURCE = "source"  # folder that keeps the RQ-VAE of source images, beside config.json
MODELS = ("init_from", "transformer.source_rqvae")  # which may be names of shipped ones


def to_json(config: ConfigDict) -> str:
    """Returns the config as JSON, which `from_json` reads back."""
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True, allow_nan=False)
    return text + "\n"


def from_json(text: str) -> ConfigDict:
    """Returns the config that `to_json` wrote, locked, with tuples restored.

    Accepts the old names of renamed fields. Fields added since get the value that runs
    without them were trained with (`Field.before`), or the default if training may
    change the field. Ranges are not checked, see `validate`.

    Raises:
      ConfigError: if the text is not a JSON object, or if fields are unknown, missing
        or of another type.
    """
    try:
        given = json.loads(text)
        if not isinstance(given, dict):
            raise ValueError(f"found a {type(given).__name__}")
    except ValueError as error:
        raise ConfigError(f"the config is not a JSON object: {error}") from None
    given = fields(given)
    for old, name in RENAMED.items():
        if old in given and name not in given:
            given[name] = given.pop(old)
    for name, field in FIELDS.items():
        if name not in given:
            if field.before is not None:
                given[name] = field.before
            elif field.changeable:
                given[name] = field.default
        elif isinstance(given[name], list):
            if isinstance(field.default, tuple) or field.or_tuple:
                given[name] = tuple(given[name])
    check_types(given)
    config = default()
    config.update_from_flattened_dict(given)
    return config


def read(file: pathlib.Path) -> ConfigDict:
    """Returns the config in the config.json of a run directory or a saved folder.

    Where `transformer.source_rqvae` is a path that a saved folder has instead of the
    true one and that does not exist, it becomes the copy in the folder.

    Raises:
      ConfigError: see `from_json`; the message begins with the file's name.
    """
    text = file.read_text("utf-8", "replace")
    try:
        content = json.loads(text)
        if isinstance(content, dict) and isinstance(content.get("config"), dict):
            text = json.dumps(content["config"])
    except ValueError:
        pass  # `from_json` says so
    try:
        config = from_json(text)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    model, kept = config.transformer.source_rqvae, file.parent / SOURCE
    if model.startswith("~/") and kept.is_dir():  # see `with_portable_paths`
        if not pathlib.Path(model).expanduser().exists():
            config.transformer.source_rqvae = str(kept.absolute())
    return config


def differences(a: ConfigDict, b: ConfigDict, command: str = "train") -> list[str]:
    """Returns the differing fields that `command` may not change in a run directory.

    Each is given as 'rqvae.steps: 100 != 200'.
    """
    a, b = fields(a), fields(b)
    return [
        f"{name}: {a.get(name)!r} != {b.get(name)!r}"
        for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name)
        and not (name in FIELDS and command in FIELDS[name].changed_by)
    ]


def with_portable_paths(config: ConfigDict) -> ConfigDict:
    """Returns the config without the folders of this machine, to give to others.

    Of a path only the last part stays, in the home folder: ~/imagenet. The model that
    training started from is left out; names of models that are no paths stay.
    """
    config = config.copy_and_resolve_references()
    given = fields(config)
    changed = {
        name: f"~/{pathlib.Path(given[name]).name}"
        for name in PATHS
        if given[name] and not (name in MODELS and _is_name(given[name]))
    }
    config.update_from_flattened_dict(changed | {"init_from": ""})
    return config


def with_absolute_paths(config: ConfigDict) -> ConfigDict:
    """Returns the config with absolute paths of data and weights.

    URLs stay, and so do names of models that are no paths.
    """
    config = config.copy_and_resolve_references()
    given = fields(config)
    changed = {
        name: str(pathlib.Path(given[name]).expanduser().absolute())
        for name in PATHS
        if given[name] and "://" not in given[name]
    }
    for field in MODELS:
        name = given[field]
        if _is_name(name) and not pathlib.Path(name).exists():
            changed.pop(field, None)
    config.update_from_flattened_dict(changed)
    return config


def _is_name(model: str) -> bool:
    """Returns whether a model is given by its name; stored paths are absolute."""
    return "/" not in model and model[:1] not in ("~", ".")
