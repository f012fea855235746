# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The authors' checkpoints as modules and variables, and back."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging

from rq import progress
from rq.convert import (
    released,
    rqvae_weights,
    safetensors_file,
    torch_file,
    transformer_weights,
)
from rq.convert.names import few
from rq.models import RQVAE, RQTransformer

_STAGES = {"rq-vae": rqvae_weights, "rq-transformer": transformer_weights}
STATE, AVERAGE = "state_dict", "state_dict_ema"  # in a checkpoint


def from_torch(arch: Mapping[str, Any], state_dict: Mapping[str, np.ndarray]):
    """Returns the module and variables of a released model.

    Args:
      arch: the `arch` section of the authors' config.yaml; its `type` says which stage.
      state_dict: names to arrays; the prefix `module.` is dropped where all have it.
        Names that the model does not have are left out with a warning. Numbers of
        another precision become float32.

    Returns:
      (`RQVAE`, {"params", "codebook"}) or (`RQTransformer`, {"params"}).

    Raises:
      ValueError: on missing names or fields, wrong shapes, numbers that are not finite,
        or architectures that never worked in the authors' code.
    """
    kind = arch.get("type")
    if kind not in _STAGES:
        raise ValueError(f"arch.type {kind!r} is neither 'rq-vae' nor 'rq-transformer'")
    return _STAGES[kind].from_torch(arch, state_dict)


def to_torch(module: RQVAE | RQTransformer, variables) -> dict[str, np.ndarray]:
    """Returns a state dict for the authors' code: the exact inverse of `from_torch`."""
    return dict(tensors(module, variables))


def tensors(
    module: RQVAE | RQTransformer, variables
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields names and arrays of `to_torch`, one at a time."""
    if isinstance(module, RQVAE):
        return rqvae_weights.tensors(module, variables)
    if isinstance(module, RQTransformer):
        return transformer_weights.tensors(module, variables)
    raise ValueError(f"{type(module).__name__} is no model of the authors'")


def variables(
    module: RQVAE | RQTransformer, state_dict: Mapping[str, np.ndarray]
) -> dict:
    """Returns the variables of a module that is known: inverts `to_torch`.

    Raises:
      ValueError: on missing names, wrong shapes or numbers that are not finite.
    """
    is_rqvae = isinstance(module, RQVAE)
    weights = rqvae_weights if is_rqvae else transformer_weights
    return weights.variables(module, state_dict)


def load(path, ema: bool = False):
    """Returns the module and variables of a released checkpoint.

    The config.yaml must lie beside it. A file that holds a state dict alone, not a
    training checkpoint around it, is taken as well, and so is a .safetensors file.
    Arrays are read one at a time, with a progress bar on a terminal.

    Args:
      path: the model.pt file.
      ema: takes the moving average of the parameters (`state_dict_ema`).

    Returns:
      As `from_torch`.

    Raises:
      ValueError: if the file has no such state dict, or as `from_torch`; the message
        begins with the path.
      FileNotFoundError: if one of the two files is missing.
    """
    path = pathlib.Path(path)
    arch = released.read_config(path.parent / released.CONFIG)["arch"]
    with progress.Bar(f"reading {path.name}", unit="B") as shown:
        is_safe = path.suffix == ".safetensors"
        file = safetensors_file if is_safe else torch_file
        with file.opened(path, shown.update) as content:
            state_dict = _choose(path, content, ema)
            sizes = [getattr(array, "nbytes", 0) for array in state_dict.values()]
            shown.reset(sum(sizes) or path.stat().st_size)
            try:
                return from_torch(arch, state_dict)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error


def has_average(path) -> bool:
    """Returns whether a checkpoint has a moving average, which `load(ema=True)` takes.

    Raises:
      ValueError, FileNotFoundError: if it cannot be read.
    """
    if pathlib.Path(path).suffix == ".safetensors":
        return False
    with torch_file.opened(path, lambda size: None) as checkpoint:
        return AVERAGE in checkpoint


def _choose(path: pathlib.Path, checkpoint: Mapping, ema: bool) -> Mapping:
    """Returns the state dict in a checkpoint, or the checkpoint if it is one itself."""
    name = AVERAGE if ema else STATE
    if name in checkpoint:
        if not isinstance(checkpoint[name], Mapping):
            raise ValueError(f"{path}: its {name!r} is no state dict")
        if others := [key for key in checkpoint if key != name]:
            logging.info("%s: left out: %s", path, few(others))
        return checkpoint[name]
    is_raw = checkpoint and all(hasattr(x, "shape") for x in checkpoint.values())
    if is_raw and not ema:
        logging.info("%s is a state dict by itself", path)
        return checkpoint
    if is_raw:
        raise ValueError(f"{path} is a state dict by itself, without a moving average")
    raise ValueError(f"{path} has no {name!r} but {few(checkpoint)}")
