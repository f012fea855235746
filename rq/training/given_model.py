# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Opens the model that a run starts from (`init_from`), wherever it is stored."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from rq import loaded_models
from rq.config import ConfigError, from_json
from rq.data import text
from rq.training import checkpoint

STAGES = {"rqvae": "RQ-VAE", "transformer": "RQ-Transformer"}


@dataclasses.dataclass(frozen=True)
class GivenModel:
    """A trained model; its weights are read when they are asked for.

    Attributes:
      path: its folder.
      config: that it was trained with.
      stages: those of 'rqvae' and 'transformer' that it has.
      read: function that returns 'params' of a stage, the moving average if there is
        one; 'codebook' of the RQ-VAE; 'frozen', networks of its loss, if they are kept.
      tokenizer_path: where the tokenizer of a model with text is.
    """

    path: pathlib.Path
    config: ConfigDict
    stages: tuple[str, ...]
    read: Callable[[str], dict[str, Any]]
    tokenizer_path: pathlib.Path


def opened(place, field: str = "init_from") -> GivenModel:
    """Opens a run directory, a saved folder or a folder of the authors' checkpoints.

    Call it in any process; it does not communicate.

    Args:
      place: see `rq.loaded_models.find_folder`.
      field: of the config that names it, for messages.

    Raises:
      ConfigError: if there are no models in it, or they are damaged.
      FileNotFoundError: if there is no such folder.
    """
    path = loaded_models.find_folder(place)
    if loaded_models.is_run(path):
        return _run(path, field)
    try:
        models = loaded_models.from_folder(path)
    except ConfigError as error:
        raise ConfigError(f"{field}: {error}") from None
    return GivenModel(
        path, models.config, models.stages, models.read, models.tokenizer_path
    )


def of_source_images(config: ConfigDict) -> GivenModel:
    """Opens the model whose RQ-VAE encodes source images (`transformer.source_rqvae`).

    Raises:
      ConfigError: if it has no RQ-VAE, or one for other images; and see `opened`.
      FileNotFoundError: if there is no such folder.
    """
    place = config.transformer.source_rqvae
    given = opened(place, "transformer.source_rqvae")
    if "rqvae" not in given.stages:
        raise ConfigError(f"transformer.source_rqvae: {place} has no RQ-VAE")
    for name in ("resolution", "channels"):
        here, there = config.data[name], given.config.data[name]
        if here != there:
            raise ConfigError(
                f"transformer.source_rqvae: data.{name} is {there} in {place}, {here} "
                "here"
            )
    return given


def _run(path: pathlib.Path, field: str) -> GivenModel:
    steps = {stage: checkpoint.latest_step(path / stage) for stage in STAGES}
    steps = {stage: step for stage, step in steps.items() if step is not None}
    if not steps:
        raise ConfigError(f"{field}: nothing was trained in {path}")

    def read(stage):
        model, _ = checkpoint.load_model(path / stage, stage, steps[stage])
        model["params"] = model.pop("ema") or model["params"]
        return model

    # Each checkpoint has the config that it was trained with; the last is of both.
    last = list(steps)[-1]
    folder = checkpoint.folder(path) / last / str(steps[last])
    config = from_json(checkpoint.read_config(folder, last))
    return GivenModel(path, config, tuple(steps), read, path / text.FILE)
