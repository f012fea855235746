# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Published figures of NVIDIA's GPUs, and topologies of unavailable ones."""

from __future__ import annotations

import re

import jax
from jax.experimental import topologies

from rq.aot.chips import Chip, TopologyError
from rq.flops import PEAKS

# What XLA asks a GPU's driver for; of the SXM modules.
_DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 {cores}
  memory_bandwidth: {bandwidth:.0f} device_memory_size: {memory}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{name}"
"""
_HOPPER = (
    "shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 "
    "core_count: 132 fpus_per_core: 128 l2_cache_size: 52428800 clock_rate_ghz: 1.98 "
    "cuda_compute_capability { major: 9 }"
)
_AMPERE = (
    "shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912 "
    "core_count: 108 fpus_per_core: 64 l2_cache_size: 41943040 clock_rate_ghz: 1.41 "
    "cuda_compute_capability { major: 8 }"
)


def _gpu(name: str, cores: str, memory: int, bandwidth: float, nvlink: float) -> Chip:
    """Returns a GPU's figures; `nvlink` is in bytes per second and direction."""
    description = _DESCRIPTION.format(
        name=name, cores=cores, memory=memory, bandwidth=bandwidth
    )
    peak = next(flops for prefix, flops in PEAKS.items() if name == prefix)
    options = {"target_config": description}
    return Chip(memory, peak, bandwidth, nvlink, options)


GPUS = {
    "a100": _gpu("NVIDIA A100", _AMPERE, 84_986_691_584, 2.039e12, 300e9),
    "h100": _gpu("NVIDIA H100", _HOPPER, 84_929_347_584, 3.352e12, 450e9),
    "h200": _gpu("NVIDIA H200", _HOPPER, 150_754_820_096, 4.8e12, 450e9),
}
_SHAPE = re.compile(r"(?:(\d+)x)?(\d+)")


def find(topology: str) -> tuple[Chip, list[jax.Device], int]:
    """Returns the GPU, the devices and the number of hosts of a topology.

    Args:
      topology: 'h100:8', eight GPUs of one host, or 'h100:2x8', of each of two hosts.

    Raises:
      TopologyError: if the shape is wrong, or JAX's CUDA plugin is missing.
    """
    name, _, shape = topology.partition(":")
    found = _SHAPE.fullmatch(shape)
    hosts, number = (int(x or 1) for x in found.groups()) if found else (0, 0)
    if not hosts * number:
        raise TopologyError(
            f"--topology={topology}: give GPUs, as {name}:8, or hosts x GPUs, as "
            f"{name}:2x8"
        )
    gpu = GPUS[name]
    try:
        description = topologies.get_topology_desc(
            platform="cuda",
            topology_name="",
            topology=f"1x{hosts}x{number}",
            **gpu.options,
        )
    except Exception as error:  # the plugin raises several types
        reason = " ".join(str(error).split())[:300]
        raise TopologyError(
            f"--topology={topology}: {reason} (needs JAX's CUDA plugin, but no GPU: "
            "pip install -e '.[aot-gpu]')"
        ) from error
    return gpu, list(description.devices), hosts
