# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes and reads a folder with the trained models of a run and nothing else.

    model.safetensors   weights of both stages: 'rqvae.' and 'transformer.', then the
                        authors' names; what a run samples with, float32 or, apart
                        from the codebook, float16
    config.json         'config' of the run; 'info': training steps, metrics, licence
    tokenizer.json      of models with text
    source/             of models whose source images have an RQ-VAE of their own: such
                        a folder of it
    README.md           the model card

Reading it needs neither Orbax nor TensorFlow.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from rq.config import (
    ConfigError,
    from_json,
    stored,
    to_json,
    validate,
    with_portable_paths,
)
from rq.convert import authors, model_card, released, safetensors_file
from rq.data import text
from rq.models.build import rqvae_model, transformer_model
from rq.parallel import atomic_files

CONFIG, CARD, WEIGHTS = "config.json", "README.md", released.WEIGHTS[1]
SOURCE = stored.SOURCE
FORMAT = 1
_BUILD: dict[str, Callable] = {"rqvae": rqvae_model, "transformer": transformer_model}


@dataclasses.dataclass(frozen=True)
class SavedFolder:
    """An opened folder; weights are read when they are asked for.

    Attributes:
      path: the folder.
      config: of the run.
      info: 'steps', 'metrics' and 'licence', as `write` got them.
    """

    path: pathlib.Path
    config: ConfigDict
    info: dict[str, Any]

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that it has, of 'rqvae' and 'transformer'."""
        return tuple(stage for stage in _BUILD if stage in self.info["steps"])

    def variables(self, stage: str) -> dict:
        """Returns the variables of a stage.

        Raises:
          ConfigError: if the file is damaged, or of another model than the config.
        """
        path, prefix = self.path / WEIGHTS, f"{stage}."
        try:
            with safetensors_file.opened(path, lambda size: None) as found:
                arrays: dict[str, Any] = {
                    name.removeprefix(prefix): array
                    for name, array in found.items()
                    if name.startswith(prefix)
                }
                return authors.variables(_BUILD[stage](self.config), arrays)
        except ValueError as error:
            where = "" if str(path) in str(error) else f"{path}: "
            raise ConfigError(f"{where}{error}") from None


def is_saved(path: pathlib.Path) -> bool:
    """Returns whether a folder is one that `write` wrote, by the names in it."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def opened(path: pathlib.Path) -> SavedFolder:
    """Opens a folder.

    Raises:
      ConfigError: if its config.json is none of `write`, or of a later version.
    """
    file = path / CONFIG
    try:
        content = json.loads(file.read_text())
        number, info = content["format"], content["info"]
        steps = {stage: int(step) for stage, step in info["steps"].items()}
        if number != FORMAT:
            raise ConfigError(
                f"{file} has format {number}; this version of rq reads {FORMAT}"
            )
        config = from_json(json.dumps(content["config"]))
        validate(config)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ConfigError(f"{file} is no config.json of a saved model") from None
    if "rqvae" not in steps:
        raise ConfigError(f"{file} has no RQ-VAE among its stages {sorted(steps)}")
    return SavedFolder(path, config, info | {"steps": steps})


def write(
    folder: pathlib.Path,
    config: ConfigDict,
    variables: Mapping[str, dict],
    info: Mapping[str, Any],
    tokenizer: text.TextTokenizer | None,
    half: bool = False,
) -> None:
    """Writes a folder.

    Args:
      folder: exists, and is empty.
      config: of the run.
      variables: of 'rqvae' and, if it was trained, 'transformer'.
      info: see `SavedFolder`; for JSON.
      tokenizer: of a model with text.
      half: stores parameters as float16.

    Raises:
      ConfigError: if a parameter is too large for float16.
    """

    def arrays() -> Iterator:
        for stage, found in variables.items():
            for name, array in authors.tensors(_BUILD[stage](config), found):
                name = f"{stage}.{name}"
                yield name, _halved(name, array) if half else array

    safetensors_file.write(folder / WEIGHTS, arrays())
    content = {
        "format": FORMAT,
        "info": dict(info),
        "config": json.loads(to_json(with_portable_paths(config))),
    }
    atomic_files.write_json(folder / CONFIG, content)
    if tokenizer is not None:
        tokenizer.save(folder / text.FILE)
    (folder / CARD).write_text(model_card.text(config, info, variables, half))


def _halved(name: str, array) -> np.ndarray:
    """Returns a parameter as float16; the codebook and integers as they are."""
    array = np.asarray(array)
    if ".codebooks." in name or array.dtype != np.float32:
        return array
    if np.abs(array).max(initial=0) > np.finfo(np.float16).max:
        raise ConfigError(f"{name} is too large for float16: save without half")
    return array.astype(np.float16)
