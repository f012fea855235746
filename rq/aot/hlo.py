# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads the text of compiled programs: computations, operations, loops, arrays."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIP_COUNT = re.compile(r'"?known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)"?\}')
_CONSTANT = re.compile(r"(%[\w.\-]+) = [su]32\[\][^ ]* constant\((\d+)\)")
_COUNTER = re.compile(r" = [su]32\[\][^ ]* get-tuple-element\(.*\), index=(\d+)")
_COMMENT = re.compile(r"/\*.*?\*/")  # within long tuples
_OPERATION = re.compile(r" = (?:\([^=]*?\)|[^ ]+) ([\w\-]+)\(")
_BITS = {"pred": 8, "bf16": 16}


def computations(text: str) -> tuple[dict[str, list[str]], str | None]:
    """Returns the lines of each computation by name, and the entry point's name."""
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


def operation(line: str) -> str:
    """Returns the name of a line's operation, such as 'fusion'; '' if there is none."""
    found = _OPERATION.search(line)
    return found[1] if found else ""


def called(line: str) -> list[str]:
    """Returns the computations that a line calls, in order."""
    names = _CALLED.findall(line)
    for group in _BRANCHES.findall(line):
        names += [name.strip().lstrip("%") for name in group.split(",")]
    return names


def trip_count(line: str, bodies) -> int:
    """Returns a loop's trip count: as noted by XLA, or its limit over its step."""
    known = _TRIP_COUNT.search(line)
    if known:
        return int(known[1])
    names = [re.search(rf"{what}=%?([\w.\-]+)", line) for what in ("condition", "body")]
    condition, body = (bodies.get(name[1], ()) if name else () for name in names)
    limits = _constants(condition).values()
    return -(-max(limits, default=1) // _step(condition, body))


def _constants(lines) -> dict[str, int]:
    """Returns the integer constants of a computation by name."""
    return {name: int(value) for one in lines for name, value in _CONSTANT.findall(one)}


def _step(condition, body) -> int:
    """Returns the increment of a loop's counter; 1 if it cannot be read."""
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


def trip_counts(text: str) -> list[int | None]:
    """Returns the trip count of every loop that a program runs; None where unknown.

    An outer loop comes before those inside it, which count each time they are called.
    """
    bodies, entry = computations(text)

    def walk(name):
        for line in bodies.get(name, ()):
            if operation(line) == "fusion":
                continue  # has no loops inside
            if operation(line) == "while":
                known = _TRIP_COUNT.search(line)
                yield int(known[1]) if known else None
            for inner in called(line):
                yield from walk(inner)

    return list(walk(entry))


def executed(text: str) -> Iterator[tuple[str, int, bool, dict[str, str]]]:
    """Yields every line that a program executes, those inside fusions too.

    Yields:
      the line, how often it is executed (loops of unknown length count once), whether
      it is in a loop, and the text of the lines around it by the name of their result.
    """
    bodies, entry = computations(text)

    def walk(name, times, in_loop):
        lines = bodies.get(name, ())
        around = {line.split(" = ")[0].split()[-1]: line for line in lines}
        for line in lines:
            yield line, times, in_loop, around
            loop = operation(line) == "while"
            trips = times * (trip_count(line, bodies) if loop else 1)
            for inner in called(line):
                yield from walk(inner, trips, in_loop or loop)

    return walk(entry, 1, False)


def result_bytes(line: str) -> float:
    """Returns the bytes of a line's result, of all arrays if it is a tuple."""
    result = line.split(" = ", 1)[1].split(f" {operation(line)}(")[0]
    return sum(array_bytes(*array) for array in ARRAY.findall(result))


def copies(text: str, size: float) -> int:
    """Returns how often loops copy, or transpose, an array of `size` bytes or more."""
    return sum(
        times
        for line, times, in_loop, _ in executed(text)
        if in_loop
        and operation(line) in ("copy", "copy-start", "transpose")
        and result_bytes(line) >= size
    )


def float32_products(text: str) -> int:
    """Returns how many matrix products are executed whose operands are all float32."""
    return sum(
        times
        for line, times, _, around in executed(text)
        if _is_product(line) and _operand_types(line, around) == {"f32"}
    )


def _is_product(line: str) -> bool:
    gemm = operation(line) == "custom-call" and "$gemm" in line or "lt$matmul" in line
    return operation(line) == "dot" or gemm


def _operand_types(line: str, around: dict[str, str]) -> set[str]:
    """Returns the element types of a product's two factors."""
    names = line.split(f" {operation(line)}(", 1)[1].split(")")[0].split(", ")[:2]
    types = [ARRAY.search(around.get(name.split()[-1], "")) for name in names]
    return {found[1] for found in types if found}


def array_bytes(dtype: str, shape: str) -> float:
    """Returns the bytes of an array from its text, as 'bf16' and '8,16'."""
    bits = _BITS.get(dtype) or int(re.sub(r"^[a-z]+", "", dtype).split("e")[0] or 0)
    return math.prod(int(n) for n in shape.split(",") if n) * bits / 8
