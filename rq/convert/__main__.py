# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m rq.convert`, see `rq.cli.convert`."""

from rq.cli.convert import main

if __name__ == "__main__":
    main()
