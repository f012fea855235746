# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m rq.aot`: the same as `rq aot`."""

import sys

from rq.cli import program

if __name__ == "__main__":
    program.run("aot", sys.argv[1:])
