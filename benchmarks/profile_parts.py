# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sums the time of a compiled step by part of the model, from a profiler trace.

XLA names the source of each instruction in its metadata (`op_name`), which has the
modules' names and the scopes `quantizer`, `soft_targets` and `optimizer`. On CPU the
trace has an event for each instruction; those of two threads may overlap, so that the
parts are fractions of the busy time, scaled to the time of a step. A convolution that
runs on other threads has an event for its start alone: what is left is in no part.
"""

from __future__ import annotations

import collections
import pathlib
import re
import tempfile
import time

import jax

# Pattern of `kind op_name` and its part; the first that matches counts.
PARTS = (
    ("quantizer", r"quantizer"),
    ("soft targets and loss", r"soft_targets|log_softmax"),
    ("optimizer", r"optimizer"),
    ("dropout", r"[Dd]ropout|bernoulli"),
    ("convolutions", r"convolution|conv_general_dilated"),
    ("matrix products", r"^(dot|ynn|\S*gemm\S*) |dot_general"),
    ("normalisation", r"norm"),
    ("attention", r"attention|attn_"),
    ("bias gradients", r"transpose\(.*reduce_sum"),
    ("activations", r"erf|logistic|(block_\w+|blocks|coder)/(mul|div|neg|sub|exp)$"),
    ("copies of scanned layers", r"dynamic_(update_)?(slice|index)|dynamic-"),
    ("transposes", r"^(transpose_copy|copy)"),
)
_CONTAINERS = ("while", "call", "conditional")  # their instructions have own events


def part(kind: str, op_name: str) -> str:
    """Returns the part of an instruction; 'other' where no pattern matches."""
    text = f"{kind} {op_name}"
    return next((name for name, known in PARTS if re.search(known, text)), "other")


def op_names(text: str) -> dict[str, str]:
    """Returns the `op_name` of each instruction of a compiled program's text.

    A fusion without one gets that of the last instruction inside that has one.
    """
    found, inside, calls, computation = {}, {}, {}, None
    for line in text.splitlines():
        header = re.match(r"(?:ENTRY )?%?([\w.\-]+) (?:\(.*)?.*\{$", line)
        if header and " = " not in line:
            computation = header[1]
            continue
        instruction = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
        if not instruction:
            continue
        name = re.search(r'op_name="([^"]*)"', line)
        called = re.search(r"calls=%?([\w.\-]+)", line)
        if name:
            found[instruction[1]] = inside[computation] = name[1]
        elif called:
            calls[instruction[1]] = called[1]
    for instruction, called in calls.items():
        found.setdefault(instruction, inside.get(called, ""))
    return found


def events(folder: str) -> dict[str, float]:
    """Returns the seconds of each instruction in a trace."""
    seconds = collections.Counter()
    (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                name = dict(event.stats).get("hlo_op")
                if name and not name.startswith(_CONTAINERS):
                    seconds[name] += event.duration_ns / 1e9
    return seconds


def seconds_by_part(step, text: str, steps: int) -> dict[str, float]:
    """Returns seconds a step by part, the largest first.

    Args:
      step: function that takes a step and waits for it.
      text: of the compiled program.
      steps: number of steps to trace.
    """
    names, totals = op_names(text), collections.Counter()
    step()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            start = time.perf_counter()
            for _ in range(steps):
                step()
            elapsed = (time.perf_counter() - start) / steps
        measured = events(folder)
    for name, seconds in measured.items():
        totals[part(name, names.get(name, ""))] += seconds
    scale = elapsed / sum(totals.values())
    return {name: seconds * scale for name, seconds in totals.most_common()}
