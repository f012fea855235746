# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Prints docs/config.md, made from the declarations of the fields.

python -m rq.config > docs/config.md
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rq.config.declaration import RUN_COMMANDS, Field
from rq.config.schema import SCHEMA

_HEAD = """\
# Every field of the config

Made by `python -m rq.config > docs/config.md`; a test fails where it is stale.

A config file in `configs/` starts from these defaults and says what differs. Every
field can be set on the command line: `--config.rqvae.steps=2000`. A tuple is written
`--config.sampling.top_p=0.95,0.9`; `--config.stages` is repeated for each stage.

A run directory keeps its config. "Later" names the commands that take a field as an
override in a run directory that exists. "Fixed" fields shape the weights: another value
is refused. `rq train` keeps what it is given in config.json, for the commands after it;
the others (COMMANDS) leave it as it is."""


def reference() -> str:
    """Returns the text of docs/config.md."""
    head = _HEAD.replace("COMMANDS", ", ".join(RUN_COMMANDS))
    tables = (_table(name, part) for name, part in _sections("", SCHEMA))
    return "\n\n".join([head, *tables]) + "\n"


def _sections(name: str, section: Mapping) -> Iterator[tuple[str, dict[str, Field]]]:
    """Yields the sections by dotted name, each with its own fields."""
    own = {key: part for key, part in section.items() if isinstance(part, Field)}
    if own:
        yield name, own
    for key, part in section.items():
        if key not in own:
            yield from _sections(f"{name}.{key}".lstrip("."), part)


def _table(name: str, section: dict[str, Field]) -> str:
    lines = [
        f"## `{name}`" if name else "## The whole run",
        "",
        "| field | default | type, range | meaning | later | since |",
        "|---|---|---|---|---|---|",
    ]
    for key, field in section.items():
        limit = field.type + (f", {field.range.text}" if field.range.text else "")
        was = f" (was `{field.was}`)" if field.was else ""
        cells = [
            f"`{key}`",
            f"`{field.default!r}`",
            limit,
            f"{field.doc}{was}",
            ", ".join(field.changed_by) or "fixed",
            field.since,
        ]
        lines.append(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(reference(), end="")
