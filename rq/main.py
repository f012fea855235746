# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m rq.main --mode=MODE FLAGS`: the same as `rq COMMAND FLAGS`.

python -m rq.main --config=digits --workdir=runs/digits
python -m rq.main --mode=sample --workdir=runs/digits --num_samples=64 --classes=3,7
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from rq.cli import program

COMMANDS = {name: name for name in program.COMMANDS} | {"eval": "evaluate"}  # by mode


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command of `--mode`, by default `train`."""
    mode, rest = "train", []
    args = iter(sys.argv[1:] if args is None else args)
    for arg in args:
        if match := re.fullmatch("--?mode(?:=(.*))?", arg):
            mode = next(args, "") if match[1] is None else match[1]
        else:
            rest.append(arg)
    if mode not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(f"error: --mode={mode}: must be one of {known}", file=sys.stderr)
        sys.exit(2)
    program.run(COMMANDS[mode], rest)


if __name__ == "__main__":
    main()
