# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The authors' PyTorch checkpoints in and out, without PyTorch.

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

from rq.convert import rqvae_weights, transformer_weights
from rq.convert.torch_file import read_torch_file
from rq.models import RQVAE, RQTransformer

__all__ = ["from_torch", "load", "read_torch_file", "to_torch"]


def from_torch(arch: Mapping[str, Any], state_dict: Mapping[str, np.ndarray]):
    """The module and variables of a released model.

    Args:
      arch: the `arch` section of the authors' config.yaml; its `type` says which stage.
      state_dict: names to arrays. Names that the model does not have are listed in a
        warning and left out.

    Returns:
      (`RQVAE`, {"params", "codebook"}) or (`RQTransformer`, {"params"}).

    Raises:
      ValueError: on missing names, wrong shapes, or architectures that never worked in
        the authors' code.
    """
    kind = arch.get("type")
    if kind == "rq-vae":
        return rqvae_weights.from_torch(arch, state_dict)
    if kind == "rq-transformer":
        return transformer_weights.from_torch(arch, state_dict)
    raise ValueError(f"arch.type {kind!r} is neither 'rq-vae' nor 'rq-transformer'")


def to_torch(module: RQVAE | RQTransformer, variables) -> dict[str, np.ndarray]:
    """The exact inverse of `from_torch`: a state dict for the authors' code."""
    if isinstance(module, RQVAE):
        return rqvae_weights.to_torch(module, variables)
    if isinstance(module, RQTransformer):
        return transformer_weights.to_torch(module, variables)
    raise ValueError(f"{type(module).__name__} is no model of the authors'")


def load(path, ema: bool = False):
    """Reads a released checkpoint and the config.yaml beside it.

    Args:
      path: the model.pt file.
      ema: takes the moving average of the parameters (`state_dict_ema`).

    Returns:
      As `from_torch`.

    Raises:
      ValueError: where the file has no such state dict, or as `from_torch`.
      FileNotFoundError: where one of the two files is missing.
    """
    path = pathlib.Path(path)
    config_path = path.parent / "config.yaml"
    if not config_path.exists():
        raise FileNotFoundError(f"{config_path} must lie beside {path.name}")
    config = yaml.safe_load(config_path.read_text())
    checkpoint = read_torch_file(path)
    name = "state_dict_ema" if ema else "state_dict"
    if name not in checkpoint:
        raise ValueError(f"{path} has no {name!r}, only {sorted(checkpoint)}")
    return from_torch(config["arch"], checkpoint[name])
