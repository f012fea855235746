# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""TPU chips by their published figures, and topologies of them that need not exist."""

from __future__ import annotations

import os
from typing import NamedTuple

import jax
from jax.experimental import topologies

GIB = 2**30


class Chip(NamedTuple):
    """Figures of Google's documentation, for one chip.

    Attributes:
      hbm: bytes of memory.
      flops: bfloat16 operations a second, peak.
      hbm_bandwidth: bytes a second.
      ici_bandwidth: bytes a second between chips of a slice, all links together.
      options: of the topology, so that a device is a whole chip.
    """

    hbm: float
    flops: float
    hbm_bandwidth: float
    ici_bandwidth: float
    options: dict = {}


CHIPS = {
    "v4": Chip(32 * GIB, 275e12, 1228e9, 2400e9 / 8, {"chip_config_name": "megacore"}),
    "v5e": Chip(16 * GIB, 197e12, 819e9, 1600e9 / 8),
    "v5p": Chip(95 * GIB, 459e12, 2765e9, 4800e9 / 8),
    "v6e": Chip(32 * GIB, 918e12, 1640e9, 3584e9 / 8),
}

# What devices call themselves, by how that begins. Of GPUs: dense, published.
PEAKS = {
    "TPU v4": CHIPS["v4"].flops,
    "TPU v5 lite": CHIPS["v5e"].flops,
    "TPU v5e": CHIPS["v5e"].flops,
    "TPU v5": CHIPS["v5p"].flops,
    "TPU v6 lite": CHIPS["v6e"].flops,
    "TPU v6e": CHIPS["v6e"].flops,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}

# The compiler asks the machine about its TPU where these do not answer.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v4-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several compilations at once
}


class TopologyError(ValueError):
    """A topology that cannot be described, told in one line."""


def peak_flops(kind: str) -> float | None:
    """Bfloat16 operations a second of a `device_kind`; None where it is not known."""
    found = [name for name in PEAKS if kind.startswith(name)]
    return PEAKS[max(found, key=len)] if found else None


def find(topology: str, slices: int = 1) -> tuple[Chip, list[jax.Device]]:
    """A chip, and the devices of a topology of them, for which to compile.

    Args:
      topology: as 'v5e:16x16' or 'v5p:4x4x8'.
      slices: of that topology, joined by the data centre's network.

    Raises:
      TopologyError: on another chip, a shape that does not exist, or without libtpu.
    """
    name, _, shape = topology.partition(":")
    if name not in CHIPS or not shape:
        known = ", ".join(f"{chip}:..." for chip in CHIPS)
        raise TopologyError(f"--topology={topology}: known are {known}, as v5e:16x16")
    chip = CHIPS[name]
    options = dict(chip.options) | ({"num_slices": slices} if slices > 1 else {})
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **options
        )
    except Exception as error:  # of the plugin, by several names
        reason = " ".join(str(error).split())[:300]
        raise TopologyError(
            f"--topology={topology}: {reason} (the compiler is the package libtpu: "
            "pip install -e '.[tpu]')"
        ) from error
    return chip, list(found.devices)
