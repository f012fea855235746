# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds the unavailable devices, TPUs or GPUs, that a topology names."""

from __future__ import annotations

from typing import NamedTuple

import jax

from rq.aot import chips, gpus


class Target(NamedTuple):
    """Devices to compile for.

    Attributes:
      chip: the figures of each.
      devices: all of them.
      networks: TPU slices or GPU hosts, which only a slower network joins.
      gpus: whether they are GPUs.
    """

    chip: chips.Chip
    devices: list[jax.Device]
    networks: int
    gpus: bool


def find(topology: str, slices: int = 1) -> Target:
    """Returns the devices of a topology.

    Args:
      topology: such as 'v5e:16x16', 'h100:8' or, on two hosts, 'h100:2x8'.
      slices: number of slices of TPUs.

    Raises:
      TopologyError: if the name or shape is unknown, or the compiler is missing.
    """
    name, _, shape = topology.partition(":")
    if name in gpus.GPUS:
        if slices > 1:
            raise chips.TopologyError(
                f"--slices={slices} is for TPUs; of GPUs give the hosts, as {name}:2x8"
            )
        return Target(*gpus.find(topology), gpus=True)
    if name not in chips.CHIPS or not shape:
        known = ", ".join(f"{name}:..." for name in (*chips.CHIPS, *gpus.GPUS))
        raise chips.TopologyError(
            f"--topology={topology} is not one of {known}, for example v5e:16x16 or "
            "h100:8"
        )
    return Target(*chips.find(topology, slices), slices, gpus=False)
