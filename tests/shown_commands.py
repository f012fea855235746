# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds the commands and Python code that the documents show.

A comment directly above a block says why no test of the documents executes it:

    <!-- needs: tpu -->                        hardware, time or files, see `NEEDS`
    <!-- run by: tests/x_test.py::test_y -->   another test does

`needs on this page` in place of `needs` holds for all blocks of a file.
"""

from __future__ import annotations

import pathlib
import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent
NEEDS = {
    "tpu": "a TPU slice, and an account that pays for it",
    "gpu": "NVIDIA GPUs",
    "time": "more than a minute on two CPU cores",
    "files": "weights or data that others published",
    "network": "a download, or a server",
}
# Programs whose lines are commands. Of those that are not rq's own nothing is checked,
# so they need a comment.
OTHERS = (
    "apt-get cd docker gcloud git kubectl mkdir nvidia-smi sbatch tail tensorboard tfds"
).split()
_STARTS = ("rq", "python", "pip", "mkdocs", "./launch/", "launch/", *OTHERS)
_COMMENT = re.compile(r"<!-- (needs on this page|needs|run by): (.+) -->")
_ASSIGNMENT = re.compile(r"[A-Z][A-Z0-9_]*=")


class Block(NamedTuple):
    """One block of code.

    Attributes:
      file: of the document, in the repository.
      number: of its first line, from 1.
      lines: without indentation, continued lines joined.
      needs: names of `NEEDS`, of the block or of the page.
      run_by: the test that executes it, '' if none is named.
    """

    file: str
    number: int
    lines: tuple[str, ...]
    needs: tuple[str, ...]
    run_by: str

    @property
    def code(self) -> list[str]:
        """The lines that are neither empty nor comments."""
        return [line for line in self.lines if line.strip() and line[0] != "#"]

    @property
    def is_shell(self) -> bool:
        """Whether the block shows commands."""
        words = [word for word in self.code[0].split() if not _ASSIGNMENT.match(word)]
        first = words[0] if words else ""
        return first in _STARTS or first.startswith(("./launch/", "launch/"))

    @property
    def is_python(self) -> bool:
        """Whether the block shows Python."""
        return self.code[0].startswith(("import ", "from "))

    def commands(self) -> Iterator[list[str]]:
        """Yields the words of each command, without variables that are set for it."""
        for line in self.code:
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                command, words = words[:end], words[end + 1 :]
                while command and _ASSIGNMENT.match(command[0]):
                    command = command[1:]
                if command:
                    yield [command[0].removeprefix(".venv/bin/"), *command[1:]]


def documents() -> list[pathlib.Path]:
    """Returns the README and all pages."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks() -> Iterator[Block]:
    """Yields all blocks of commands and of Python code of all documents."""
    for path in documents():
        for block in blocks_of(path.read_text(), str(path.relative_to(ROOT))):
            if block.code and (block.is_shell or block.is_python):
                yield block


def blocks_of(text: str, file: str = "") -> Iterator[Block]:
    """Yields the blocks of code of a document, indented or fenced."""
    lines = text.splitlines()
    page = _needs(dict(_COMMENT.findall(text)).get("needs on this page", ""))
    above, number = {}, 0
    while number < len(lines):
        line, start = lines[number], number
        if line.startswith("```"):
            number += 1
            while not lines[number].startswith("```"):
                number += 1
            found, start = lines[start + 1 : number], start + 1
        elif line.startswith("    ") and not (start and lines[start - 1].strip()):
            while number < len(lines) and (
                lines[number].startswith("    ") or not lines[number].strip()
            ):
                number += 1
            found = [line[4:] for line in lines[start:number]]
            number -= 1  # the line after the block is read again
        else:
            comment = _COMMENT.match(line)
            if comment:
                above[comment[1]] = comment[2]
            elif line.strip():
                above = {}
            number += 1
            continue
        number += 1
        joined = re.sub(r"\\\n\s*", "", "\n".join(found)).splitlines()
        needs = page | _needs(above.get("needs", ""))
        yield Block(
            file, start + 1, tuple(joined), tuple(needs), above.get("run by", "")
        )
        above = {}


def _needs(text: str) -> dict[str, None]:
    return dict.fromkeys(filter(None, text.replace(",", " ").split()))


def in_tables() -> Iterator[tuple[str, list[str]]]:
    """Yields file and words of each command of `rq` with a flag in a table."""
    for path in documents():
        for row in re.findall(r"^\|.*\|$", path.read_text(), re.M):
            for line in re.findall(r"`(rq [a-z]+ [^`]*--[^`]*)`", row):
                yield path.name, shlex.split(line)
