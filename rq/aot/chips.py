# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Published figures of TPU chips, and topologies of unavailable devices."""

from __future__ import annotations

import os
from typing import NamedTuple

import jax
from jax.experimental import topologies

from rq.flops import PEAKS

GIB = 2**30


class Chip(NamedTuple):
    """Holds the figures of one chip, from its maker's documentation.

    Attributes:
      hbm: bytes of memory.
      flops: peak bfloat16 FLOP/s.
      hbm_bandwidth: bytes per second.
      ici_bandwidth: bytes per second between chips of a slice or GPUs of a host, all
        links together.
      options: for `get_topology_desc`: what describes one device.
    """

    hbm: float
    flops: float
    hbm_bandwidth: float
    ici_bandwidth: float
    options: dict = {}


CHIPS = {
    "v4": Chip(
        32 * GIB, PEAKS["TPU v4"], 1228e9, 2400e9 / 8, {"chip_config_name": "megacore"}
    ),
    "v5e": Chip(16 * GIB, PEAKS["TPU v5e"], 819e9, 1600e9 / 8),
    "v5p": Chip(95 * GIB, PEAKS["TPU v5"], 2765e9, 4800e9 / 8),
    "v6e": Chip(32 * GIB, PEAKS["TPU v6e"], 1640e9, 3584e9 / 8),
}

# They stop the compiler from looking for a TPU on this machine.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v4-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # for several compilations at once
}


class TopologyError(ValueError):
    """The topology is unknown or its compiler is missing; the message is one line."""


def find(topology: str, slices: int = 1) -> tuple[Chip, list[jax.Device]]:
    """Returns the chip and devices of a topology, to compile for.

    Args:
      topology: one of `CHIPS` and a shape, such as 'v5e:16x16' or 'v5p:4x4x8'.
      slices: number of slices of that topology, joined by the data centre's network.

    Raises:
      TopologyError: if the shape is unknown, or libtpu is missing.
    """
    chip = CHIPS[topology.partition(":")[0]]
    options = dict(chip.options) | ({"num_slices": slices} if slices > 1 else {})
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **options
        )
    except Exception as error:  # the plugin raises several types
        reason = " ".join(str(error).split())[:300]
        raise TopologyError(
            f"--topology={topology}: {reason} (needs libtpu: pip install -e '.[tpu]')"
        ) from error
    return chip, list(found.devices)
