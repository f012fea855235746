# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Takes the RQ-VAE of source images into a run (`transformer.source_rqvae`).

The run directory keeps it as a saved folder, so that later commands need no other.
"""

from __future__ import annotations

import pathlib
import shutil

from etils import epath
from ml_collections import ConfigDict

from rq import loaded_models
from rq.config import ConfigError, validate
from rq.convert import model_card, saved_folder
from rq.models.build import code_dim, rqvae_model
from rq.parallel import atomic_files, processes
from rq.training import given_model


def resolve(config: ConfigDict, path: epath.Path) -> ConfigDict:
    """Returns the config of a run with the shapes of its source images' codes.

    Process 0 writes the RQ-VAE to the run directory, if it is not there yet.

    Raises:
      ConfigError: if there is no such RQ-VAE, it is for other images, or its place in
        the run directory has other files.
      FileNotFoundError: if there is no such folder.
    """
    if not config.transformer.source_rqvae:
        return config
    if "://" in str(path):
        raise ConfigError(
            f"transformer.source_rqvae: the RQ-VAE is kept on a disk, not in {path}"
        )
    folder = pathlib.Path(path) / saved_folder.SOURCE
    # Without a config the run has not begun: what is there may be of another start.
    begun = (pathlib.Path(path) / loaded_models.RUN_CONFIG).exists()
    if processes.broadcast(not (begun and saved_folder.is_saved(folder))):
        given, model = _read(config)
        with processes.process_0_first("the RQ-VAE of source images"):
            if processes.is_process_0():
                _write(given, model, folder)
    return with_shapes(config, saved_folder.opened(folder).config)


def with_shapes(config: ConfigDict, found: ConfigDict) -> ConfigDict:
    """Returns a config with the shapes of source images' codes, of their RQ-VAE's."""
    with config.unlocked():
        config = config.copy_and_resolve_references()
    config.transformer.source_shape = rqvae_model(found).code_shape
    config.transformer.source_dim = code_dim(found)
    validate(config)
    return config


def _read(config: ConfigDict) -> tuple[ConfigDict, dict]:
    """Returns config and variables of the RQ-VAE; raises as `resolve` does.

    All processes do: Orbax, which reads run directories, waits for all of them.
    """
    given = given_model.of_source_images(config)
    found = given.read("rqvae")
    return given.config, {name: found[name] for name in ("params", "codebook")}


def _write(config: ConfigDict, model: dict, folder: pathlib.Path) -> None:
    """Writes an RQ-VAE as a saved folder, in place of that of an earlier start.

    Raises:
      ConfigError: if something else is there.
    """
    if folder.exists():
        if any(folder.iterdir()) and not saved_folder.is_saved(folder):
            raise ConfigError(
                f"{folder} is for the RQ-VAE of source images, and has other files: "
                "choose another --workdir"
            )
        shutil.rmtree(folder)
    info = {"steps": {"rqvae": 0}, "metrics": {}, "licence": model_card.UNKNOWN}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_files.new_folder(folder) as (_, made):
        made.mkdir()
        saved_folder.write(made, config, {"rqvae": model}, info, None)
