# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Where arrays live: the mesh of devices, and one table from axis names to its axes.

Everything is a global array: the batch is divided over `data` and `fsdp`, parameters
and optimizer state over `fsdp` and `tensor`, and the compiler inserts what must be
communicated. One device is the mesh of 1 x 1 x 1.
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
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# Logical name of an array's axis -> axis, or axes, of the mesh that divide it.
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
    """Devices, mesh and batch do not fit together, told in one line."""


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh over all devices, of all processes.

    Args:
      data: copies of the model.
      fsdp: parts that parameters and optimizer state are divided into; each part works
        on a batch of its own.
      tensor: parts that heads, MLP and vocabulary are divided into.
      devices: `jax.devices()` where None.
      One of the three may be -1: whatever is left.

    Returns:
      A mesh with axes `AXES`, left to the compiler (`AxisType.Auto`).

    Raises:
      MeshError: where the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    told = ", ".join(f"mesh.{name}={size}" for name, size in sizes.items())
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise MeshError(f"{told}: sizes are positive, and one of them may be -1")
    given = math.prod(size for size in sizes.values() if size != -1)
    if free and len(devices) % given == 0:
        sizes[free[0]] = len(devices) // given
    elif given != len(devices) or free:
        verb = "divide" if free else "multiply to"
        raise MeshError(f"{told} do not {verb} the {len(devices)} devices")
    return Mesh(_grid(sizes, devices), AXES)


def _grid(sizes: dict[str, int], devices) -> np.ndarray:
    """Devices in their places; between slices of TPUs goes `data` alone."""
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
    """Within it, traced functions know the mesh and what axis names mean.

    `with mesh:` would silently drop every `nn.with_logical_constraint`.
    """
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis divided over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts the devices divide a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


@functools.cache
def _parts_by_process(mesh: Mesh) -> dict[int, tuple[int, ...]]:
    """Which parts of a batch the devices of each process hold."""
    held: dict[int, set[int]] = {}
    for part, devices in enumerate(mesh.devices.reshape(batch_parts(mesh), -1)):
        for device in devices:
            held.setdefault(device.process_index, set()).add(part)
    return {process: tuple(sorted(parts)) for process, parts in held.items()}


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """What this process reads of each batch: (index, count) of equal shares.

    With `tensor` across processes several of them hold, and read, the same rows.

    Raises:
      MeshError: where the processes' devices overlap in the rows of a batch otherwise.
    """
    held = _parts_by_process(mesh)
    shares = sorted(set(held.values()))
    if sum(map(len, shares)) > batch_parts(mesh) or len(set(map(len, shares))) > 1:
        raise MeshError(
            f"mesh {dict(mesh.shape)}: the devices of {len(held)} processes do not "
            "share a batch in equal parts; make mesh.tensor smaller, or a multiple of "
            "the devices of a process"
        )
    return shares.index(held[jax.process_index()]), len(shares)


def rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns which rows of a global batch the devices of this process hold, in order.

    Raises:
      MeshError: where the batch does not divide over the devices.
    """
    parts = batch_parts(mesh)
    if batch_size % parts:
        raise MeshError(
            f"a batch of {batch_size} does not divide by data x fsdp = {parts}"
        )
    held = _parts_by_process(mesh)[jax.process_index()]
    return np.arange(batch_size).reshape(parts, -1)[list(held)].ravel()


def partition_spec(
    names: Sequence[str | None], shape: Sequence[int], mesh: Mesh
) -> PartitionSpec:
    """Logical axis names of an array to axes of the mesh, by `RULES`.

    An axis stays whole where the mesh does not divide it, so that small models run on
    any mesh, and where an earlier axis of the array has taken its place in the mesh.

    Raises:
      MeshError: on a name that the table lacks; Flax would leave it whole silently.
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
    """The array, divided as its axes' logical names say, within `context`.

    Unlike Flax's constraints it leaves an axis whole where the mesh does not divide it,
    as `partition_spec` does for parameters.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.axis_names != AXES:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(names, x.shape, mesh))


def _is_box(x) -> bool:
    return isinstance(x, meta.AxisMetadata)


def unbox(tree: Any) -> Any:
    """The tree without its axis names; leaves may be arrays or abstract."""

    def value(x):
        return x.unbox(apply_constraint=False) if _is_box(x) else x

    return jax.tree.map(value, tree, is_leaf=_is_box)


def state_shardings(abstract_boxed: Any, mesh: Mesh) -> Any:
    """Shardings of a tree whose leaves carry axis names.

    Args:
      abstract_boxed: what `jax.eval_shape(stage.init, key)` returns; leaves without
        names are replicated.
      mesh: from `make_mesh`.

    Returns:
      A tree of NamedShardings with the structure of `unbox(abstract_boxed)`.

    Raises:
      MeshError: on a name that `RULES` lacks.
    """

    def one(x):
        if not _is_box(x):
            return replicated(mesh)
        value = x.unbox(apply_constraint=False)
        if isinstance(value, optax.MaskedNode):  # of another optimizer's part
            return value
        if value.ndim != len(x.names):  # Adafactor's sums over rows and columns
            return replicated(mesh)
        return NamedSharding(mesh, partition_spec(x.names, value.shape, mesh))

    return jax.tree.map(one, abstract_boxed, is_leaf=_is_box)


def abstract_state(abstract_boxed: Any, mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings: what a checkpoint is restored into.

    Takes what `state_shardings` takes; returns a tree of `jax.ShapeDtypeStruct`.
    """
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        unbox(abstract_boxed),
        state_shardings(abstract_boxed, mesh),
    )


def check_batch(size: int, mesh: Mesh, grad_accum_steps: int = 1) -> None:
    """Checks that a global batch divides over devices, processes and microbatches.

    Raises:
      MeshError: where it does not.
    """
    data, fsdp = (mesh.shape[axis] for axis in BATCH_AXES)
    if size < 1 or size % (data * fsdp * grad_accum_steps):
        raise MeshError(
            f"batch_size={size} does not divide by data x fsdp x grad_accum_steps = "
            f"{data} x {fsdp} x {grad_accum_steps} = {data * fsdp * grad_accum_steps}"
        )
    batch_share(mesh)


def shard_batch(
    batch: Mapping[str, np.ndarray], mesh: Mesh, whole: bool = False
) -> dict[str, jax.Array]:
    """Puts this process's rows `[B / shares, ...]` on its devices (`batch_share`).

    Args:
      batch: arrays by name.
      mesh: of the devices.
      whole: every process has all rows `[B, ...]`, and puts there what belongs there.

    Returns:
      Global arrays `[B, ...]`, divided as `batch_sharding` says.

    Raises:
      MeshError: where the rows do not divide over the devices.
    """
    sharding = batch_sharding(mesh)
    parts = batch_parts(mesh)
    held = range(parts) if whole else _parts_by_process(mesh)[jax.process_index()]
    arrays = {}
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
    """Global arrays as NumPy arrays, whole, in every process; all must call it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
