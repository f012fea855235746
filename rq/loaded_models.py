# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Trained models from files without Orbax: saved folders, the authors' checkpoints.

The models that come with the package are saved folders in `rq/shipped`.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from rq.config import ConfigError
from rq.convert import authors, released, released_config, saved_folder
from rq.convert.model_card import UNKNOWN
from rq.models.build import transformer_model
from rq.models.unroll import unroll
from rq.parallel import sharding
from rq.sampling.trained_models import TrainedModels

SHIPPED = pathlib.Path(__file__).parent / "shipped"
RUN_CONFIG = "config.json"  # of a run directory


def shipped() -> dict[str, pathlib.Path]:
    """Returns the folders of the models that come with the package, by name."""
    found = sorted(SHIPPED.iterdir()) if SHIPPED.is_dir() else []
    return {path.name: path for path in found if saved_folder.is_saved(path)}


def place(path) -> epath.Path:
    """Returns the folder of a shipped model if a path is its name, else the path.

    A folder of that name with a config.json, such as a run directory, comes first.
    """
    folder, path = shipped().get(str(path)), epath.Path(path)
    if folder is None or (path / saved_folder.CONFIG).exists():
        return path
    return epath.Path(folder)


class LoadedModels(TrainedModels):
    """Models of which each is read once, when it is first used.

    Attributes:
      stages: 'rqvae' and, if there is one, 'transformer'.
      info: 'steps', 'metrics' and 'licence', see `saved_folder.SavedFolder`.
      read: function that reads and returns the variables of a stage.
    """

    def __init__(
        self,
        path,
        config,
        stages: tuple[str, ...],
        info: dict[str, Any],
        read: Callable[[str], dict],
        tokenizer_path=None,
        **options,
    ):
        """Takes a function that returns the variables of a stage.

        Args:
          path, config: see `TrainedModels`.
          stages, info: see above.
          read: the function.
          tokenizer_path: where the tokenizer is; None: in `path`.
          **options: mesh and dtype.
        """
        super().__init__(path, config, **options)
        self.stages, self.info = stages, info
        self.read, self._tokenizer_path = read, tokenizer_path

    @property
    def tokenizer_path(self):
        """See `TrainedModels`."""
        return self._tokenizer_path or super().tokenizer_path

    @functools.cached_property
    def rqvae_variables(self) -> dict:
        """See `TrainedModels`."""
        return self._on_devices(self.read("rqvae"))

    @functools.cached_property
    def transformer_variables(self) -> dict:
        """See `TrainedModels`."""
        params = self.read("transformer")["params"]
        if self.dtype is not None:
            if self.dtype != "int8":  # made from the weights as they are stored
                params = jax.tree.map(lambda x: x.astype(jnp.dtype(self.dtype)), params)
            _, params = unroll(transformer_model(self.config), params, self.dtype)
        codebook = dict(self.rqvae_variables["codebook"])
        if self.config.transformer.source_rqvae:
            variables = self.source_models.rqvae_variables
            codebook["source"] = variables["codebook"]["state"]
        return {"params": self._on_devices(params), "codebook": codebook}

    def open_source_models(self) -> LoadedModels:
        """See `TrainedModels`."""
        return from_saved(self.path / saved_folder.SOURCE, mesh=self.mesh)

    def _on_devices(self, variables: dict) -> dict:
        return jax.device_put(variables, sharding.replicated(self.mesh))


def require_no_step(path, step: str | int) -> None:
    """Raises ConfigError on a `step` of a folder that is no run directory."""
    if step != "latest":
        raise ConfigError(f"step {step!r}: {path} is no run directory, it has no steps")


def find_folder(path) -> pathlib.Path:
    """Returns the folder with models that a user names; see `place`.

    Raises:
      FileNotFoundError: if there is no such folder.
    """
    path = pathlib.Path(place(path)).expanduser()
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise FileNotFoundError(
            f"{path} {what}: name a run directory, a saved model, a folder of the "
            "authors' checkpoints or one of the models that come with rq, "
            f"{', '.join(shipped())}"
        )
    return path


def is_run(path: pathlib.Path) -> bool:
    """Returns whether a folder is a run directory, which needs Orbax to be read."""
    return not saved_folder.is_saved(path) and (path / RUN_CONFIG).exists()


def from_folder(path: pathlib.Path, **options) -> LoadedModels:
    """Opens a folder that is no run directory.

    Raises:
      ConfigError: see `from_saved` and `from_authors`.
    """
    is_saved = saved_folder.is_saved(path)
    return (from_saved if is_saved else from_authors)(path, **options)


def from_saved(path: pathlib.Path, **options) -> LoadedModels:
    """Opens a folder that `Model.save` wrote.

    Raises:
      ConfigError: if its config.json is damaged; `read` also where its weights are.
    """
    saved = saved_folder.opened(path)

    return LoadedModels(
        path, saved.config, saved.stages, saved.info, saved.variables, **options
    )


@contextlib.contextmanager
def _as_config_errors() -> Iterator[None]:
    """Raises ConfigError for what is wrong with the authors' checkpoints."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None


def from_authors(path: pathlib.Path, **options) -> LoadedModels:
    """Opens a folder of the authors' checkpoints.

    Raises:
      ConfigError: if it has none, or not those of one pair of models; `read` also where
        they are damaged.
    """
    with _as_config_errors():
        rqvae, transformer = released.find([path])
    models = {"rqvae": rqvae}
    if transformer is not None:
        models["transformer"] = transformer
    with _as_config_errors():
        config = released_config.run_config(rqvae, transformer)
    tokenizer_path = None
    if "text" in config.transformer.condition:
        tokenizer_path = released.find_tokenizer([path])
        if tokenizer_path is None:
            raise ConfigError(
                f"{path}: the text model needs its tokenizer, *vocab.json and "
                "*merges.txt or a tokenizer.json, in this folder"
            )
    # How long the released models were trained is not known.
    info = {"steps": dict.fromkeys(models, 0), "metrics": {}, "licence": UNKNOWN}

    def read(stage):
        with _as_config_errors():
            return authors.load(models[stage].weights)[1]

    return LoadedModels(
        path, config, tuple(models), info, read, tokenizer_path, **options
    )
