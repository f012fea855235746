# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Opens run directories, saved folders and shipped models for commands."""

from __future__ import annotations

import functools
import hashlib

import jax
import numpy as np
from etils import epath

from rq import loaded_models
from rq.convert import saved_folder
from rq.experiment import Experiment, stored_config


class SavedExperiment(Experiment):
    """A saved folder as an experiment to sample from and to measure.

    Nothing is written into the folder. Codes of a data set are not stored there, so
    images are encoded when stage 2 is measured; nor are the networks of losses.
    """

    def __init__(self, path, mesh=None, dtype: str | None = None, config=None):
        """Opens a folder.

        Args:
          path: of the folder.
          mesh, dtype, config: see `Experiment`.
        """
        self._saved = saved_folder.opened(path)
        config = self._saved.config if config is None else config
        config = config.copy_and_resolve_references()
        config.transformer.online = True
        config.rqvae.loss.perceptual = "none"
        super().__init__(path, mesh, dtype=dtype, config=config)

    @property
    def output_path(self) -> epath.Path:
        """Folder of what commands write: of that name in ./outputs."""
        return epath.Path("outputs").absolute() / self.path.name

    @property
    def stages(self) -> tuple[str, ...]:
        """See `Experiment`."""
        return self._saved.stages

    def finished(self, stage: str) -> bool:
        """Returns whether the folder has a stage."""
        return stage in self.stages

    def step_of(self, stage: str) -> int:
        """Returns how many steps a stage was trained for."""
        return self._saved.info["steps"].get(stage, 0)

    @functools.cached_property
    def _digest(self) -> str:
        weights = self._saved.path / saved_folder.WEIGHTS
        with weights.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def identity(self, stage: str) -> str:
        """Returns a hash of the weights of all stages."""
        return self._digest

    def stored(self, stage: str, where=None, dtype: str | None = None) -> dict:
        """See `Experiment`."""
        variables = self._saved.variables(stage)
        codebook = variables.get("codebook")
        if codebook is None:  # stage 2's is that of stage 1
            codebook = dict(self._saved.variables("rqvae")["codebook"])
            if self.config.transformer.source_rqvae:
                source = saved_folder.opened(self.path / saved_folder.SOURCE)
                codebook["source"] = source.variables("rqvae")["codebook"]["state"]
        params = variables["params"]
        if dtype is not None:
            params = jax.tree.map(lambda x: np.asarray(x, dtype), params)
        model = {"params": params, "codebook": codebook}
        if where is not None:
            places = where if isinstance(where, dict) else dict.fromkeys(model, where)
            model = {name: jax.device_put(x, places[name]) for name, x in model.items()}
        return model | {"ema": {}, "frozen": {}}


def open_experiment(
    path, mesh=None, step: str | int = "latest", dtype: str | None = None, config=None
) -> Experiment:
    """Opens a run directory, a saved folder, or a shipped model by its name.

    Args:
      path: of the folder, or the name.
      mesh, step, dtype, config: see `Experiment`.

    Raises:
      ConfigError: on a `step` of a folder that is no run directory.
      FileNotFoundError: if there are no models.
    """
    path = loaded_models.place(path)
    if not saved_folder.is_saved(path):
        return Experiment(path, mesh, step, dtype, config)
    loaded_models.require_no_step(path, step)
    return SavedExperiment(path, mesh, dtype, config)


def is_saved(path) -> bool:
    """Returns whether a path is a saved folder, or the name of a shipped model."""
    return saved_folder.is_saved(loaded_models.place(path))


def config_of(path):
    """Returns the config that the models of `open_experiment` were trained with.

    Raises:
      FileNotFoundError: if there are none.
    """
    path = loaded_models.place(path)
    if saved_folder.is_saved(path):
        return saved_folder.opened(path).config
    return stored_config(path)
