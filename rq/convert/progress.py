# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Shows a progress bar of bytes, on terminals only."""

from __future__ import annotations

import tqdm


def bar(what: str, total: int = 0) -> tqdm.tqdm:
    """Returns a progress bar, a context manager; `update(n)` adds n bytes to it.

    Args:
      what: stands in front of the bar.
      total: number of bytes; `reset(total)` sets another.
    """
    return tqdm.tqdm(desc=what, total=total, unit="B", unit_scale=True, disable=None)
