# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads and writes the authors' PyTorch checkpoints, without PyTorch.

    module, variables = convert.load("imagenet_1.4B/stage2/model.pt")
    module, variables = convert.from_torch(arch, state_dict)
    state_dict = convert.to_torch(module, variables)

A state dict is a mapping of the authors' parameter names to NumPy arrays in PyTorch's
layouts; `arch` is the section of that name in the config.yaml beside a checkpoint.
"""

from rq.convert.authors import from_torch, load, to_torch
from rq.convert.torch_file import read_torch_file

__all__ = ["from_torch", "load", "read_torch_file", "to_torch"]
