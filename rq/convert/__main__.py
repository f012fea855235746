# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m rq.convert`: the same as `rq convert`."""

import sys

from rq.cli import program

if __name__ == "__main__":
    program.run("convert", sys.argv[1:])
