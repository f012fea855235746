# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a program does, counted: operations of its matrix products, bytes it sends.

XLA's own cost analysis counts the body of a loop once, however often it runs. These
multiply by the number of turns.
"""

from __future__ import annotations

import collections
import math
import re
from typing import NamedTuple

import numpy as np
from jax.interpreters import partial_eval


def operations(jaxpr) -> float:
    """Operations of all matrix products and convolutions, a product and a sum each.

    Those of the whole program, over all devices; recomputation is in them, and what
    no output needs is not. A loop without a known number of turns counts once, of
    branches the dearest.

    Args:
      jaxpr: of a traced program: `jax.jit(f).trace(...).jaxpr`.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    live, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _operations(live)


def _operations(jaxpr) -> float:
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _dot(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "scan":
            total += params["length"] * _operations(params["jaxpr"])
        elif name == "cond":
            total += max(_operations(branch) for branch in params["branches"])
        else:
            total += sum(_operations(inner) for inner in _inner(params))
    return total


def _inner(params):
    """The programs among an equation's parameters."""
    for value in params.values():
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if hasattr(getattr(one, "jaxpr", one), "eqns"):
                yield one


def _dot(equation) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval, equation.outvars[0].aval
    return 2 * out.size * math.prod(left.shape[axis] for axis in contracted)


def _convolution(equation) -> float:
    kernel, out = equation.invars[1].aval, equation.outvars[0].aval
    out_axis = equation.params["dimension_numbers"].rhs_spec[0]
    # Of an image with zeros between its pixels, as in gradients of strides.
    zeros = math.prod(equation.params["lhs_dilation"])
    return 2 * out.size * kernel.size / kernel.shape[out_axis] / zeros


class Collectives(NamedTuple):
    """Of one kind, on one device, in one run of the program.

    Attributes:
      count: how many run.
      bytes: that they take or make, whichever is more: the size of the data.
      wire: bytes that a device must send where they are done in a ring.
      held: bytes of it that are a device's own part: what it has before they gather,
        or after they scatter.
    """

    count: int
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
# On TPUs a reduce-scatter is an all-reduce and its slices, in a fusion of this name.
_FUSED_SCATTER = "all-reduce-scatter"
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TURNS = re.compile(r'"?known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)"?\}')
_CONSTANT = re.compile(r"(%[\w.\-]+) = [su]32\[\][^ ]* constant\((\d+)\)")
_COUNTER = re.compile(r" = [su]32\[\][^ ]* get-tuple-element\(.*\), index=(\d+)")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_COMMENT = re.compile(r"/\*.*?\*/")  # within long tuples
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]")
_CONTEXT = ("u32", "")  # what the start of a permutation returns beside arrays
_BITS = {"pred": 8, "bf16": 16}


def collectives(
    text: str, devices: int, partitioned: bool = False
) -> dict[str, Collectives]:
    """Collectives by kind, from a compiled program's text (`compiled.as_text()`).

    Those in the bodies of loops count as often as the loop turns.

    Args:
      text: of the program, which is that of each device.
      devices: of the whole mesh, the group where none is written.
      partitioned: it is what the partitioner wrote, before the backend has chosen how
        to do it. There a sum of which a device takes its slice is a reduce-scatter.
    """
    bodies, entry = _computations(text)
    found = {kind: np.zeros(4) for kind in KINDS}
    memory: dict[str, dict] = {}

    def count(name):
        """Figures by kind and channel.

        On TPUs one collective, by its channel, is in several fusions, which start it,
        go on with it and end it; some of them in a loop that hides it, which does not
        repeat it.
        """
        if name not in memory:
            total = collections.defaultdict(lambda: np.zeros(4))
            scatters = name.startswith(_FUSED_SCATTER)
            lines = bodies.get(name, ())
            for line in sorted(lines, key=lambda line: _operation(line) == "while"):
                begun = set(total) if _operation(line) == "while" else ()
                for key, values in one_line(line, scatters, lines):
                    if key[1] is None:
                        total[key] = total[key] + values
                    elif key not in begun:
                        total[key] = np.maximum(total[key], values)
            memory[name] = dict(total)
        return memory[name]

    def one_line(line, scatters, lines):
        operation = _operation(line)
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
            return  # what they name was counted at the start
        turns = 1
        called = _CALLED.findall(line)
        if operation == "while":
            turns = _turns(line, bodies)
        for group in _BRANCHES.findall(line):
            called += [name.strip().lstrip("%") for name in group.split(",")]
        for name in called:
            for key, values in count(name).items():
                yield key, turns * values

    for (kind, _), values in count(entry).items():
        found[kind] = found[kind] + values
    return {
        kind: Collectives(int(values[0]), *map(float, values[1:]))
        for kind, values in found.items()
        if values[0]
    }


def _computations(text):
    """Lines of each computation by its name, and the name of the entry."""
    bodies, entry, current = {}, None, None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = bodies.setdefault(header[2], [])
            if header[1]:
                entry = header[2]
        elif line.startswith("}"):
            current = None
        elif current is not None:
            current.append(_COMMENT.sub("", line))
    return bodies, entry


_OPERATION = re.compile(r" = (?:\([^=]*?\)|[^ ]+) ([\w\-]+)\(")


def _operation(line: str) -> str:
    found = _OPERATION.search(line)
    return found[1] if found else ""


_SAME_VALUES = ("bitcast", "convert", "copy", "reshape", "transpose")


def _is_sliced(line: str, lines) -> bool:
    """Whether of what a line makes others in its computation use slices alone."""
    name = re.escape(line.split(" = ")[0].split()[-1])
    uses = re.compile(rf"[( ]{name}[,)]")
    users = [other for other in lines if uses.search(other)]
    return bool(users) and all(
        _operation(user) == "dynamic-slice"
        or (_operation(user) in _SAME_VALUES and _is_sliced(user, lines))
        for user in users
    )


def _turns(line, bodies) -> int:
    """Of a loop: what XLA notes, or its counter's limit over the counter's step."""
    known = _TURNS.search(line)
    if known:
        return int(known[1])
    names = [re.search(rf"{what}=%?([\w.\-]+)", line) for what in ("condition", "body")]
    condition, body = (bodies.get(name[1], ()) if name else () for name in names)
    limits = _constants(condition).values()
    return -(-max(limits, default=1) // _step(condition, body))


def _constants(lines) -> dict[str, int]:
    """Integer constants of a computation by name."""
    return {name: int(value) for one in lines for name, value in _CONSTANT.findall(one)}


def _step(condition, body) -> int:
    """What a turn of a loop adds to its counter; 1 where that cannot be read."""
    counter = next((x for one in condition for x in _COUNTER.findall(one)), None)
    root = next((one for one in body if one.lstrip().startswith("ROOT")), "")
    parts = root.rpartition(" tuple(")[2].split(")")[0].split(",")
    if counter is None or int(counter) >= len(parts):
        return 1
    result = parts[int(counter)].strip()
    added = next((one for one in body if one.lstrip().startswith(f"{result} = ")), "")
    constants = _constants(body)
    names = re.findall(r" add\((%[\w.\-]+), (%[\w.\-]+)\)", added)
    return max((constants.get(x, 1) for pair in names for x in pair), default=1)


def _size(kind: str, line: str) -> float:
    """Bytes of what a collective's line says that it returns."""
    result = line.split(f" {kind}", 1)[0].split(" = ", 1)[1]
    arrays = [found for found in _ARRAY.findall(result) if found != _CONTEXT]
    sizes = [_bytes(*array) for array in arrays]
    if f" {kind}-start(" in line and len(sizes) > 1:
        # Operands and results: the results are the second half.
        sizes = sizes[len(sizes) // 2 :] if len(sizes) % 2 == 0 else [max(sizes)]
    return sum(sizes)


def _measure(kind: str, size: float, group: int) -> np.ndarray:
    """The fields of `Collectives` of one, whose whole arrays have so many bytes.

    A permutation along a ring of n is one of n - 1 steps, in which a chip's own part
    reaches all others: so compilers hide the gathering of what a product needs.
    """
    share = (group - 1) / group
    wire = {"all-reduce": 2 * share, "collective-permute": 1}.get(kind, share)
    held = {"all-reduce": 1, "collective-permute": 1 / max(1, group - 1)}.get(
        kind, 1 / group
    )
    return np.array([1, size, wire * size, held * size])


def _ring(line: str) -> int:
    """Devices in the ring of a permutation; 2, a mere exchange, where it has none."""
    found = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", line)
    pairs = re.findall(r"\{(\d+),(\d+)\}", found[1]) if found else []
    target, length = dict(pairs), 1
    start = here = pairs[0][0] if pairs else None
    while (here := target.get(here)) not in (None, start):
        length += 1
    return length if here is not None else 2


def _bytes(dtype: str, shape: str) -> float:
    bits = _BITS.get(dtype) or int(re.sub(r"^[a-z]+", "", dtype).split("e")[0] or 0)
    return math.prod(int(n) for n in shape.split(",") if n) * bits / 8


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
