# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads and writes the authors' PyTorch checkpoints, without PyTorch.

    module, variables = convert.load("imagenet_1.4B/stage2/model.pt")
    module, variables = convert.from_torch(arch, state_dict)
    state_dict = convert.to_torch(module, variables)

A state dict is a mapping of the authors' parameter names to NumPy arrays in PyTorch's
layouts; `arch` is the section of that name in the config.yaml beside a checkpoint.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml
from absl import logging

from rq.convert import rqvae_weights, transformer_weights
from rq.convert.names import few
from rq.convert.torch_file import read_torch_file
from rq.models import RQVAE, RQTransformer

__all__ = ["from_torch", "load", "read_torch_file", "to_torch"]


def from_torch(arch: Mapping[str, Any], state_dict: Mapping[str, np.ndarray]):
    """Returns the module and variables of a released model.

    Args:
      arch: the `arch` section of the authors' config.yaml; its `type` says which stage.
      state_dict: names to arrays; the prefix `module.` is dropped where all have it.
        Names that the model does not have are left out with a warning.

    Returns:
      (`RQVAE`, {"params", "codebook"}) or (`RQTransformer`, {"params"}).

    Raises:
      ValueError: on missing names or fields, wrong shapes, numbers that are not finite,
        or architectures that never worked in the authors' code.
    """
    kind = arch.get("type")
    stages = {"rq-vae": rqvae_weights, "rq-transformer": transformer_weights}
    if kind not in stages:
        raise ValueError(f"arch.type {kind!r} is neither 'rq-vae' nor 'rq-transformer'")
    return stages[kind].from_torch(arch, state_dict)


def to_torch(module: RQVAE | RQTransformer, variables) -> dict[str, np.ndarray]:
    """Returns a state dict for the authors' code: the exact inverse of `from_torch`."""
    if isinstance(module, RQVAE):
        return rqvae_weights.to_torch(module, variables)
    if isinstance(module, RQTransformer):
        return transformer_weights.to_torch(module, variables)
    raise ValueError(f"{type(module).__name__} is no model of the authors'")


def load(path, ema: bool = False):
    """Returns the module and variables of a released checkpoint.

    The config.yaml must lie beside it. A file that holds a state dict alone, not a
    training checkpoint around it, is taken as well.

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
    arch = _read_arch(path.parent / "config.yaml")
    checkpoint = read_torch_file(path)
    name = "state_dict_ema" if ema else "state_dict"
    is_raw = checkpoint and all(isinstance(v, np.ndarray) for v in checkpoint.values())
    if name in checkpoint:
        state_dict = checkpoint[name]
    elif is_raw and not ema:
        logging.info("%s is a state dict by itself", path)
        state_dict = checkpoint
    elif is_raw:
        raise ValueError(f"{path} is a state dict by itself, without a moving average")
    else:
        raise ValueError(f"{path} has no {name!r} but {few(checkpoint)}")
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"{path}: its {name!r} is no state dict")
    try:
        return from_torch(arch, state_dict)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_arch(path: pathlib.Path) -> Mapping[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: it must lie beside the checkpoint")
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ValueError(f"{path} is no YAML") from None
    arch = config.get("arch") if isinstance(config, Mapping) else None
    if not isinstance(arch, Mapping):
        raise ValueError(f"{path} has no section 'arch'")
    return arch
