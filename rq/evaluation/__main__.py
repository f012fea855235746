# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""`python -m rq.evaluation`, see `rq.cli.evaluate_images`."""

from rq.cli.evaluate_images import main

if __name__ == "__main__":
    main()
