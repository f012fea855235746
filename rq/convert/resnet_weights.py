# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Converts torchvision's ResNet weights to one file, batch norms folded."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rq.convert import npz_file
from rq.convert.names import StateDict, unwrapped
from rq.convert.torch_file import read_torch_file
from rq.models.networks.resnet import WIDTHS, ResNet

KIND = "resnet"  # stored in the file
EPSILON = 1e-5  # of PyTorch's batch norm


def from_torch(state_dict: Mapping[str, np.ndarray]):
    """Returns a module and its parameters from PyTorch's arrays.

    Args:
      state_dict: of torchvision's `resnet18` to `resnet152`; the kind and number of
        blocks and of classes are read off the names and shapes.

    Returns:
      (`ResNet`, parameters).

    Raises:
      ValueError: on missing names or wrong shapes.
    """
    state_dict = unwrapped(state_dict)
    arrays = StateDict(state_dict)

    def conv(name, norm, channels, width, size):
        kernel = arrays.take(f"{name}.weight", (width, channels, size, size))
        scale, shift, mean, variance = (
            arrays.take(f"{norm}.{part}", (width,)).astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        if f"{norm}.num_batches_tracked" in arrays:
            arrays.take(f"{norm}.num_batches_tracked")
        scale = scale / np.sqrt(variance + EPSILON)
        return {
            "kernel": (kernel.transpose(2, 3, 1, 0) * scale).astype(np.float32),
            "bias": (shift - mean * scale).astype(np.float32),
        }

    bottleneck = "layer1.0.conv3.weight" in state_dict
    params = {"conv1": conv("conv1", "bn1", 3, WIDTHS[0], 7)}
    blocks, channels = [], WIDTHS[0]
    for group, width in enumerate(WIDTHS):
        index = 0
        while f"layer{group + 1}.{index}.conv1.weight" in state_dict or not index:
            name = f"layer{group + 1}.{index}"
            widths = (width, width, 4 * width) if bottleneck else (width, width)
            sizes = (1, 3, 1) if bottleneck else (3, 3)
            block, inner = {}, channels
            for k, (out, size) in enumerate(zip(widths, sizes, strict=True), 1):
                block[f"conv{k}"] = conv(
                    f"{name}.conv{k}", f"{name}.bn{k}", inner, out, size
                )
                inner = out
            if f"{name}.downsample.0.weight" in state_dict:
                short = f"{name}.downsample"
                block["downsample"] = conv(
                    f"{short}.0", f"{short}.1", channels, inner, 1
                )
            params[name.replace(".", "_")] = block
            channels, index = inner, index + 1
        blocks.append(index)
    weight = arrays.take("fc.weight")
    classes = len(weight)
    if weight.shape != (classes, channels):
        raise ValueError(f"fc.weight has shape {weight.shape}, not [..., {channels}]")
    params["fc"] = {"kernel": weight.T, "bias": arrays.take("fc.bias", (classes,))}
    arrays.finish()
    return ResNet(tuple(blocks), bottleneck, classes), params


def save(module: ResNet, params, out) -> None:
    """Writes what `load` reads.

    Raises:
      ValueError: if `out` is no .npz.
    """
    about = [module.blocks, module.bottleneck, module.num_classes]
    npz_file.save(out, KIND, params, about)


def convert(weights, out) -> None:
    """Converts torchvision's `resnet*.pth` to the `.npz` that `--classifier` takes.

    Raises:
      ValueError: as `from_torch` and `save`.
    """
    module, params = from_torch(read_torch_file(weights))
    save(module, params, out)


def load(path):
    """Reads what `convert` wrote: (`ResNet`, parameters).

    Raises:
      DataError: if the file is missing, damaged or something else, with the command.
    """
    how = (
        "rq convert resnet --weights=resnet101-63fe2227.pth --out=FILE.npz makes it "
        "from torchvision's weights"
    )
    (blocks, bottleneck, classes), params = npz_file.load(
        path, KIND, "--classifier", how
    )
    return ResNet(tuple(blocks), bottleneck, classes), params
