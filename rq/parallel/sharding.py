# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The mesh of devices, and how arrays are sharded over it.

All arrays are global: the batch is sharded over `data` and `fsdp`, parameters and
optimizer state over `fsdp` and `tensor`. The compiler inserts the communication. A
single device is a 1 x 1 x 1 mesh.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from flax.core import meta
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# Logical name of an array axis -> the mesh axis or axes that it is sharded over.
RULES = (
    ("batch", BATCH_AXES),
    # transformer
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("layers", None),
    ("depth", None),
    ("positions", None),
    ("condition", None),
    ("latent", None),
    # autoencoder
    ("conv_in", None),
    ("conv_out", "fsdp"),
)


class MeshError(ValueError):
    """Devices, mesh and batch do not fit together; the message is one line."""


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Returns a mesh over the devices of all processes.

    One of the three sizes may be -1: it is computed from the number of devices.

    Args:
      data: number of copies of the model.
      fsdp: number of shards of parameters and optimizer state; each shard also
        processes its own rows of the batch.
      tensor: number of shards of heads, MLP and vocabulary.
      devices: `jax.devices()` if None.

    Returns:
      A mesh with axes `AXES`, of type `AxisType.Auto`.

    Raises:
      MeshError: if the product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    given_sizes = ", ".join(f"mesh.{name}={size}" for name, size in sizes.items())
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise MeshError(f"{given_sizes}: sizes are positive; only one may be -1")
    given = math.prod(size for size in sizes.values() if size != -1)
    if free and len(devices) % given == 0:
        sizes[free[0]] = len(devices) // given
    elif given != len(devices) or free:
        verb = "divide" if free else "multiply to"
        raise MeshError(f"{given_sizes} do not {verb} the {len(devices)} devices")
    return Mesh(_grid(sizes, devices), AXES)


def _grid(sizes: dict[str, int], devices) -> np.ndarray:
    """Returns the array of devices; only `data` may cross slices of TPUs."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    shape = tuple(sizes.values())
    if slices == 1:
        return mesh_utils.create_device_mesh(
            shape, devices, allow_split_physical_axes=True
        )
    if sizes["data"] % slices:
        raise MeshError(
            f"mesh.data={sizes['data']} does not divide by the {slices} slices, "
            "which the network of the data centre joins: only gradients may cross it"
        )
    return mesh_utils.create_hybrid_device_mesh(
        (sizes["data"] // slices, *shape[1:]),
        (slices, 1, 1),
        devices,
        allow_split_physical_axes=True,
    )


@contextlib.contextmanager
def context(mesh: Mesh) -> Iterator[None]:
    """Sets the mesh and the axis rules for functions traced within it.

    `with mesh:` would silently ignore every `nn.with_logical_constraint`.
    """
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that puts the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of the leading axis over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_parts(mesh: Mesh) -> int:
    """Returns the number of shards of a batch, data x fsdp."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


@functools.cache
def _parts_by_process(mesh: Mesh) -> dict[int, tuple[int, ...]]:
    """Returns the indices of the batch shards that each process's devices hold."""
    held: dict[int, set[int]] = {}
    for part, devices in enumerate(mesh.devices.reshape(batch_parts(mesh), -1)):
        for device in devices:
            held.setdefault(device.process_index, set()).add(part)
    return {process: tuple(sorted(parts)) for process, parts in held.items()}


def batch_shard(mesh: Mesh) -> tuple[int, int]:
    """Returns the rows this process reads of each batch: shard `index` of `count`.

    If `tensor` spans processes, several of them hold and read the same rows.

    Raises:
      MeshError: if the rows that processes hold overlap in part, or differ in number.
    """
    held = _parts_by_process(mesh)
    shards = sorted(set(held.values()))
    if sum(map(len, shards)) > batch_parts(mesh) or len(set(map(len, shards))) > 1:
        raise MeshError(
            f"mesh {dict(mesh.shape)} does not split a batch evenly over "
            f"{len(held)} processes; make mesh.tensor smaller, or a multiple of the "
            "number of devices per process"
        )
    return shards.index(held[jax.process_index()]), len(shards)


def rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the indices of a global batch's rows that this process holds, in order.

    Raises:
      MeshError: if the batch does not divide over the devices.
    """
    parts = batch_parts(mesh)
    if batch_size % parts:
        raise MeshError(
            f"a batch of {batch_size} does not divide by data x fsdp = {parts}"
        )
    held = _parts_by_process(mesh)[jax.process_index()]
    return np.arange(batch_size).reshape(parts, -1)[list(held)].ravel()


def partition_spec(
    names: Sequence[str | None], shape: Sequence[int], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """Returns the sharding of an array by `RULES`, from its logical axis names.

    An axis is not sharded if its size does not divide over the mesh axes, so that small
    models run on any mesh, or if an earlier axis of the array uses those mesh axes.

    Raises:
      MeshError: if `RULES` lacks a name; Flax would silently replicate that axis.
    """
    rules = dict(RULES)
    taken: set[str] = set()
    spec = []
    for name, size in zip(names, shape, strict=True):
        if name is not None and name not in rules:
            raise MeshError(
                f"unknown logical axis {name!r} of an array {tuple(shape)}; "
                f"known: {', '.join(rules)}"
            )
        target = rules[name] if name is not None else None
        axes = (target,) if isinstance(target, str) else target or ()
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if taken & set(axes) or size % parts:
            target = None
        else:
            taken |= set(axes)
        spec.append(target)
    return PartitionSpec(*spec)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Constrains an array's sharding by its logical axis names, within `context`.

    Unlike Flax's constraints it replicates axes that do not divide over the mesh, as
    `partition_spec` does for parameters.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.axis_names != AXES:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(names, x.shape, mesh))


def _is_box(x) -> bool:
    return isinstance(x, meta.AxisMetadata)


def unbox(tree: Any) -> Any:
    """Returns the tree without its axis names; leaves may be arrays or abstract."""

    def value(x):
        return x.unbox(apply_constraint=False) if _is_box(x) else x

    return jax.tree.map(value, tree, is_leaf=_is_box)


def state_shardings(abstract_boxed: Any, mesh: Mesh) -> Any:
    """Returns the shardings of a tree whose leaves carry axis names.

    Args:
      abstract_boxed: result of `jax.eval_shape(stage.init, key)`; leaves without names
        are replicated.
      mesh: from `make_mesh`.

    Returns:
      A tree of NamedShardings with the structure of `unbox(abstract_boxed)`.

    Raises:
      MeshError: if `RULES` lacks a name.
    """

    def one(x):
        if not _is_box(x):
            return replicated(mesh)
        value = x.unbox(apply_constraint=False)
        if isinstance(value, optax.MaskedNode):  # belongs to another optimizer
            return value
        if value.ndim != len(x.names):  # Adafactor's sums over rows and columns
            return replicated(mesh)
        return NamedSharding(mesh, partition_spec(x.names, value.shape, mesh))

    return jax.tree.map(one, abstract_boxed, is_leaf=_is_box)


def abstract_state(abstract_boxed: Any, mesh: Mesh) -> Any:
    """Returns `jax.ShapeDtypeStruct`s with shardings, to restore a checkpoint into.

    The arguments are those of `state_shardings`.
    """
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        unbox(abstract_boxed),
        state_shardings(abstract_boxed, mesh),
    )


def check_batch(size: int, mesh: Mesh, grad_accum_steps: int = 1) -> None:
    """Checks that a global batch divides over devices, processes and microbatches.

    Raises:
      MeshError: if it does not.
    """
    data, fsdp = (mesh.shape[axis] for axis in BATCH_AXES)
    if size < 1 or size % (data * fsdp * grad_accum_steps):
        raise MeshError(
            f"batch_size={size} does not divide by data x fsdp x grad_accum_steps = "
            f"{data} x {fsdp} x {grad_accum_steps} = {data * fsdp * grad_accum_steps}"
        )
    batch_shard(mesh)


def shard_batch(
    batch: Mapping[str, np.ndarray], mesh: Mesh, whole: bool = False
) -> dict[str, jax.Array]:
    """Returns global arrays, from the rows that each process holds.

    Args:
      batch: arrays by name: this process's rows `[B / count, ...]` (`batch_shard`).
      mesh: the devices.
      whole: `batch` has all rows `[B, ...]` in every process.

    Returns:
      Arrays `[B, ...]`, sharded by `batch_sharding`.

    Raises:
      MeshError: if the rows do not divide over the devices.
    """
    sharding = batch_sharding(mesh)
    parts = batch_parts(mesh)
    held = range(parts) if whole else _parts_by_process(mesh)[jax.process_index()]
    arrays: dict[str, jax.Array] = {}
    for name, rows in batch.items():
        size = len(rows) * parts // len(held)
        if size % parts:
            raise MeshError(
                f"a batch of {size} ({name!r}) does not divide by data x fsdp = {parts}"
            )
        each = size // parts

        def part(index, rows=rows, each=each):
            place = held.index((index[0].start or 0) // each)
            return rows[place * each : (place + 1) * each]

        shape = (size, *rows.shape[1:])
        arrays[name] = jax.make_array_from_callback(shape, sharding, part)
    return arrays


def to_host(tree: Any) -> Any:
    """Returns global arrays as whole NumPy arrays; all processes must call it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
