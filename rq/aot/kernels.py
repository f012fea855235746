# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Counts the kernels that a program compiled for GPUs launches.

XLA writes what its executable does, step by step, as a tree of "thunks": kernels,
library calls and copies, inside loops, conditionals and command buffers (CUDA graphs).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from rq.aot import hlo

_THUNK = re.compile(r"^( *)\d+: k(\w+)(.*)")
_LABEL = re.compile(r"^ *(\w+):$")
# They launch nothing themselves.
_STRUCTURE = {
    "AsyncDone",
    "AsyncStart",
    "CommandBuffer",
    "Conditional",
    "DynamicSliceFusion",
    "Sequential",
    "WaitForStreams",
    "While",
}
_FINISHED = re.compile(r"Done$")  # of collectives and copies, counted at their start
_HOST = re.compile(r"^(Infeed|Outfeed|HostSend|HostRecv|HostExecute)")


@dataclasses.dataclass
class Thunk:
    """One step of an executable.

    Attributes:
      kind: as XLA names it, without the k: 'CustomKernel', 'Gemm', 'While', ...
      inside: the steps inside it by section: '' or, of a loop, 'condition' and 'body';
        of a conditional, its branches.
      trips: number of iterations of a loop; None if unknown.
    """

    kind: str
    inside: dict[str, list[Thunk]] = dataclasses.field(default_factory=dict)
    trips: int | None = None


@dataclasses.dataclass(frozen=True)
class Count:
    """Totals of a part of an executable.

    Attributes:
      kernels: kernels, library calls and copies that the GPU executes.
      launches: the same as seen by the host: a command buffer is one launch.
      command_buffers: command buffers among the launches.
      host_reads: how often the host waits for a value of the GPU, to choose the branch
        of a conditional or to end a loop.
      host_transfers: infeeds, outfeeds, sends and receives.
    """

    kernels: int = 0
    launches: int = 0
    command_buffers: int = 0
    host_reads: int = 0
    host_transfers: int = 0

    def __add__(self, other: Count) -> Count:
        ours, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Count(*(a + b for a, b in zip(ours, theirs, strict=True)))

    def __mul__(self, times: int) -> Count:
        return Count(*(times * value for value in dataclasses.astuple(self)))


def parse(sequence: str, text: str) -> list[Thunk]:
    """Returns the steps of an executable.

    Args:
      sequence: the file `*.thunk_sequence_after_thunk_passes.txt` that XLA dumps.
      text: `compiled.as_text()`, which has the loops' trip counts.
    """
    root = Thunk("Sequential")
    path, sections, label = [root], [""], ""
    for line in sequence.splitlines():
        named = _LABEL.match(line)
        if named:
            label = named[1]
        found = _THUNK.match(line)
        if not found:
            continue
        level = len(found[1]) // 4
        del path[level + 1 :], sections[level + 1 :]
        if label:
            sections[level], label = label, ""
        thunk = Thunk(found[2])
        path[level].inside.setdefault(sections[level], []).append(thunk)
        path.append(thunk)
        sections.append("")
    loops = list(_loops(root))
    trips = hlo.trip_counts(text)
    if len(loops) == len(trips):
        for loop, number in zip(loops, trips, strict=True):
            loop.trips = number
    return root.inside.get("", [])


def _loops(thunk: Thunk) -> Iterator[Thunk]:
    """Yields all loops, outer before inner, in the order of execution."""
    for section in thunk.inside.values():
        for inner in section:
            if inner.kind == "While":
                yield inner
            yield from _loops(inner)


def count(thunks: list[Thunk], in_buffer: bool = False) -> Count:
    """Returns the totals of a list of steps.

    A loop counts once per iteration (once if its trip count is unknown), a conditional
    as its longest branch.
    """
    return sum((_count(thunk, in_buffer) for thunk in thunks), Count())


def _count(thunk: Thunk, in_buffer: bool) -> Count:
    parts = {name: count(x, in_buffer) for name, x in thunk.inside.items()}
    on_host = 0 if in_buffer else 1
    if thunk.kind == "While":
        total = parts.get("body", Count()) * (thunk.trips or 1)
        if thunk.trips is None or in_buffer:  # otherwise the host counts
            total += parts.get("condition", Count()) * (thunk.trips or 1)
        return total + Count(host_reads=on_host if thunk.trips is None else 0)
    if thunk.kind == "Conditional":
        longest = max(parts.values(), key=lambda part: part.kernels, default=Count())
        return longest + Count(host_reads=on_host)
    if thunk.kind == "CommandBuffer" and not in_buffer:
        inside = sum((count(x, True) for x in thunk.inside.values()), Count())
        return inside + Count(launches=1, command_buffers=1)
    own = Count(kernels=1, launches=on_host, host_transfers=0)
    if thunk.kind in _STRUCTURE or _FINISHED.search(thunk.kind):
        own = Count()
    elif _HOST.match(thunk.kind):
        own = Count(launches=on_host, host_transfers=1)
    return sum(parts.values(), own)


def loops(thunks: list[Thunk], trips: int) -> list[Count]:
    """Returns the totals of one iteration of every loop of `trips` iterations."""
    root = Thunk("Sequential", {"": thunks})
    return [
        count(loop.inside.get("body", []))
        for loop in _loops(root)
        if loop.trips == trips
    ]
