# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m rq.evaluation`: the same as `rq evaluate`."""

import sys

from rq.cli import program

if __name__ == "__main__":
    program.run("evaluate", sys.argv[1:])
