# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Converts pytorch-fid's Inception weights to one file, batch norms folded."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from rq.convert import npz_file
from rq.convert.names import StateDict
from rq.convert.torch_file import read_torch_file
from rq.models.networks.inception import NUM_CLASSES, SIDE, Inception

KIND = "inception-2015-12-05"  # stored in the file
EPSILON = 1e-3  # of its batch norms


@functools.cache
def _shapes() -> dict[str, tuple[int, ...]]:
    """Returns the shape of each array of the network by its name."""
    images = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    tree = jax.eval_shape(Inception().init, jax.random.key(0), images)["params"]
    flat = flax.traverse_util.flatten_dict(tree, sep="/")
    return {name: leaf.shape for name, leaf in flat.items()}


def from_torch(state_dict: Mapping[str, np.ndarray]):
    """Returns parameters of `Inception` from PyTorch's arrays.

    Args:
      state_dict: that of pytorch-fid's `pt_inception-2015-12-05-6726825d.pth`.

    Raises:
      ValueError: on missing names or wrong shapes.
    """
    arrays, flat = StateDict(state_dict), {}
    flat["fc_bias"] = arrays.take("fc.bias", (NUM_CLASSES,))
    for name, shape in _shapes().items():
        layer, _, part = name.rpartition("/")
        if part != "kernel":
            continue  # comes with its kernel
        source = layer.replace("/", ".")
        if source == "fc":
            flat[name] = arrays.take("fc.weight", (NUM_CLASSES, shape[0])).T
            continue
        height, width, inner, outer = shape
        kernel = arrays.take(f"{source}.conv.weight", (outer, inner, height, width))
        scale, shift, mean, variance = (
            arrays.take(f"{source}.bn.{part}", (outer,)).astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        if f"{source}.bn.num_batches_tracked" in arrays:
            arrays.take(f"{source}.bn.num_batches_tracked")
        scale = scale / np.sqrt(variance + EPSILON)
        flat[name] = (kernel.transpose(2, 3, 1, 0) * scale).astype(np.float32)
        flat[f"{layer}/bias"] = (shift - mean * scale).astype(np.float32)
    arrays.finish()
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def convert(weights, out) -> None:
    """Converts pytorch-fid's weights to the `.npz` that `--inception` takes.

    Raises:
      ValueError: as `from_torch`, or if `out` is no .npz.
    """
    npz_file.save(out, KIND, from_torch(read_torch_file(weights)))


def load(path):
    """Reads what `convert` wrote: parameters of `Inception`.

    Raises:
      DataError: if the file is missing, damaged or something else, with the command.
    """
    how = (
        "rq convert inception --weights=pt_inception-2015-12-05-6726825d.pth "
        "--out=FILE.npz makes it from pytorch-fid's weights"
    )
    return npz_file.load(path, KIND, "--inception", how)[1]
