# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Counts the collectives of a compiled program from its text.

XLA's cost analysis counts a loop's body once. Here it counts once per iteration.
"""

from __future__ import annotations

import collections
import math
import re
from typing import NamedTuple

import numpy as np

from rq.aot import hlo


class Collectives(NamedTuple):
    """Totals for one kind of collective, on one device, in one run of the program.

    Attributes:
      count: number of executions.
      bytes: size of inputs or outputs, the larger of the two.
      wire: bytes that a device sends if collectives are implemented as rings.
      held: bytes of the device's own shard, before a gather or after a scatter.
    """

    count: int  # type: ignore[assignment]  # a tuple's method has this name
    bytes: float
    wire: float
    held: float


KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
# On TPUs a reduce-scatter is a fusion of this name, of an all-reduce and slices.
_FUSED_SCATTER = "all-reduce-scatter"
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]")
_CONTEXT = ("u32", "")  # returned by the start of a permutation along with arrays


def collectives(
    text: str, devices: int, partitioned: bool = False
) -> dict[str, Collectives]:
    """Returns the collectives of a compiled program, by kind.

    Args:
      text: `compiled.as_text()`, the program of one device.
      devices: number of devices, the group size if the text gives none.
      partitioned: the text is the partitioner's output, before the backend chooses
        implementations. An all-reduce of which each device only uses its slice then
        counts as a reduce-scatter.
    """
    bodies, entry = hlo.computations(text)
    found = {kind: np.zeros(4) for kind in KINDS}
    memory: dict[str, dict] = {}

    def count(name):
        """Returns the totals of a computation by kind and channel.

        On TPUs one collective (one channel) appears in several fusions, which start,
        continue and finish it. Some are in a loop that overlaps it with other work, and
        must not be counted again.
        """
        if name not in memory:
            total = collections.defaultdict(lambda: np.zeros(4))
            scatters = name.startswith(_FUSED_SCATTER)
            lines = bodies.get(name, ())
            for line in sorted(lines, key=lambda line: hlo.operation(line) == "while"):
                begun = set(total) if hlo.operation(line) == "while" else ()
                for key, values in one_line(line, scatters, lines):
                    if key[1] is None:
                        total[key] = total[key] + values
                    elif key not in begun:
                        total[key] = np.maximum(total[key], values)
            memory[name] = dict(total)
        return memory[name]

    def one_line(line, scatters, lines):
        operation = hlo.operation(line)
        kind = operation.removesuffix("-start")
        if kind in KINDS:
            size, group = _size(kind, line), _group(line, devices)
            sliced = scatters or (partitioned and _is_sliced(line, lines))
            if sliced and kind == "all-reduce":
                kind = "reduce-scatter"
            elif kind == "reduce-scatter":
                size *= group
            channel = _CHANNEL.search(line)
            key = kind, channel[1] if channel else None
            if kind == "collective-permute":
                group = _ring(line)
            yield key, _measure(kind, size, group)
        if operation.endswith(("-done", "-update")):
            return  # counted at the start
        trips = 1
        called = hlo.called(line)
        if operation == "while":
            trips = hlo.trip_count(line, bodies)
        for name in called:
            for key, values in count(name).items():
                yield key, trips * values

    for (kind, _), values in count(entry).items():
        found[kind] = found[kind] + values
    return {
        kind: Collectives(int(values[0]), *map(float, values[1:]))
        for kind, values in found.items()
        if values[0]
    }


_SAME_VALUES = ("bitcast", "convert", "copy", "reshape", "transpose")


def _is_sliced(line: str, lines) -> bool:
    """Returns whether only slices of a line's result are used."""
    name = re.escape(line.split(" = ")[0].split()[-1])
    uses = re.compile(rf"[( ]{name}[,)]")
    users = [other for other in lines if uses.search(other)]
    return bool(users) and all(
        hlo.operation(user) == "dynamic-slice"
        or (hlo.operation(user) in _SAME_VALUES and _is_sliced(user, lines))
        for user in users
    )


def _size(kind: str, line: str) -> float:
    """Returns the bytes of a collective's result, from its line."""
    result = line.split(f" {kind}", 1)[0].split(" = ", 1)[1]
    arrays = [found for found in hlo.ARRAY.findall(result) if found != _CONTEXT]
    sizes = [hlo.array_bytes(*array) for array in arrays]
    if f" {kind}-start(" in line and len(sizes) > 1:
        # Operands and results: the results are the second half.
        sizes = sizes[len(sizes) // 2 :] if len(sizes) % 2 == 0 else [max(sizes)]
    return sum(sizes)


def _measure(kind: str, size: float, group: int) -> np.ndarray:
    """Returns the fields of `Collectives` for one collective, of `size` bytes.

    A permutation along a ring of n counts as one of the n - 1 steps of an all-gather,
    which compilers overlap with matrix products.
    """
    fraction = (group - 1) / group
    wire = {"all-reduce": 2 * fraction, "collective-permute": 1}.get(kind, fraction)
    held = {"all-reduce": 1, "collective-permute": 1 / max(1, group - 1)}.get(
        kind, 1 / group
    )
    return np.array([1, size, wire * size, held * size])


def _ring(line: str) -> int:
    """Returns the length of a permutation's ring; 2 (an exchange) if there is none."""
    found = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", line)
    pairs = re.findall(r"\{(\d+),(\d+)\}", found[1]) if found else []
    target, length = dict(pairs), 1
    start = here = pairs[0][0] if pairs else None
    while (here := target.get(here)) not in (None, start):
        length += 1
    return length if here is not None else 2


def _group(line: str, devices: int) -> int:
    iota = _IOTA.search(line)
    if iota:
        return int(iota[2])
    named = _NAMED.search(line)
    if named:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        axes = re.findall(r"'(\w+)'", named[2])
        return math.prod(int(sizes[axis]) for axis in axes)
    listed = _LISTED.search(line)
    if listed and listed[1]:
        return len(listed[1].split(","))
    return devices
