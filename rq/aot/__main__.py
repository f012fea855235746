# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m rq.aot`, see `rq.cli.aot`."""

from absl import app

from rq import config
from rq.cli.aot import main

if __name__ == "__main__":
    app.run(main, flags_parser=config.flags_parser)
