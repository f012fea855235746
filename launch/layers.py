# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes the table of packages in docs/design.md from the import contract.

    python launch/layers.py

The contract is in pyproject.toml; `lint-imports` checks it.
"""

from __future__ import annotations

import ast
import pathlib
import tomllib

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENT = ROOT / "docs/design.md"
START, END = "<!-- layers -->\n", "<!-- /layers -->"


def purpose(package: str) -> str:
    """Returns the first line of a module's or package's docstring."""
    path = ROOT / "rq" / package
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]


def table() -> str:
    """Returns a Markdown table of the packages, top layer first, and their imports."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    contracts = tool["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["type"] == "layers")
    layers = [[name.strip() for name in layer.split("|")] for layer in layers]
    lines = ["| package | what is in it | may import |", "|---|---|---|"]
    for place, layer in enumerate(layers):
        below = [f"`{name}`" for lower in layers[place + 1 :] for name in lower]
        lines += [
            f"| `{name}` | {purpose(name)} | {', '.join(below) or 'nothing'} |"
            for name in layer
        ]
    return "\n".join(lines) + "\n"


def updated(text: str) -> str:
    """Returns the document with a new table between its markers."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}{table()}{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(updated(DOCUMENT.read_text()))
