# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads the discriminator in the authors' stage-1 training checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rq.convert.names import StateDict
from rq.models.networks.discriminator import Discriminator


def from_torch(arch: Mapping[str, Any], state_dict: Mapping[str, np.ndarray]):
    """Returns the module and variables of a PatchGAN discriminator.

    Args:
      arch: the section `gan.disc.arch` of the authors' config.yaml: `ndf`,
        `num_layers`, `use_actnorm`.
      state_dict: names `main.{i}.*`.

    Returns:
      (`Discriminator`, {"params", "batch_stats"}).

    Raises:
      ValueError: on missing names, or ActNorm, which no released model has.
    """
    if arch.get("use_actnorm"):
        raise ValueError("use_actnorm=True is in no released model")
    module = Discriminator(ndf=arch["ndf"], layers=arch["num_layers"])
    arrays = StateDict(state_dict)
    params, statistics = {}, {}
    for layer in range(module.layers + 2):
        # convolution, leaky ReLU; from then on convolution, norm, leaky ReLU
        index = 3 * layer - (layer > 0)
        kernel = arrays.take(f"main.{index}.weight").transpose(2, 3, 1, 0)
        params[f"conv_{layer}"] = {"kernel": kernel}
        if layer in (0, module.layers + 1):
            params[f"conv_{layer}"]["bias"] = arrays.take(f"main.{index}.bias")
            continue
        norm = f"main.{index + 1}"
        params[f"norm_{layer}"] = {
            "scale": arrays.take(f"{norm}.weight"),
            "bias": arrays.take(f"{norm}.bias"),
        }
        statistics[f"norm_{layer}"] = {
            "mean": arrays.take(f"{norm}.running_mean"),
            "var": arrays.take(f"{norm}.running_var"),
        }
        arrays.take(f"{norm}.num_batches_tracked")  # a moving average needs no count
    arrays.finish()
    return module, {"params": params, "batch_stats": statistics}
