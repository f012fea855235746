# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Takes the RQ-VAE of source images into a run (`transformer.source_rqvae`).

The run directory keeps it as a saved folder, so that later commands need no other.
"""

from __future__ import annotations

import pathlib

from etils import epath
from ml_collections import ConfigDict

from rq import library, loaded_models
from rq.config import ConfigError, validate
from rq.convert import saved_folder
from rq.models.build import code_dim, rqvae_model
from rq.parallel import processes


def resolve(config: ConfigDict, path: epath.Path) -> ConfigDict:
    """Returns the config of a run with the shapes of its source images' codes.

    Process 0 writes the RQ-VAE to the run directory, if it is not there yet.

    Raises:
      ConfigError: if there is no such RQ-VAE, or it is for other images.
      FileNotFoundError: if there is no such folder.
    """
    if not config.transformer.source_rqvae:
        return config
    if "://" in str(path):
        raise ConfigError(
            f"transformer.source_rqvae: the RQ-VAE is kept on a disk, not in {path}"
        )
    folder = pathlib.Path(path) / saved_folder.SOURCE
    with processes.process_0_first("the RQ-VAE of source images"):
        if not saved_folder.is_saved(folder):
            _write(config, folder)
    found = saved_folder.opened(folder).config
    with config.unlocked():
        config = config.copy_and_resolve_references()
    config.transformer.source_shape = rqvae_model(found).code_shape
    config.transformer.source_dim = code_dim(found)
    validate(config)
    return config


def _write(config: ConfigDict, folder: pathlib.Path) -> None:
    """Writes the RQ-VAE as a saved folder; raises as `resolve` does."""
    place = loaded_models.find_folder(config.transformer.source_rqvae)
    try:
        given = library.load(place)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"transformer.source_rqvae: {error}") from None
    for name in ("resolution", "channels"):
        here, there = config.data[name], given.config.data[name]
        if here != there:
            raise ConfigError(
                f"transformer.source_rqvae: data.{name} is {there} in {place}, {here} "
                "here"
            )
    folder.parent.mkdir(parents=True, exist_ok=True)
    given.rqvae_alone().save(folder)
