# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Goodput of a stage over all its restarts: the share of time that made progress.

Counted are the seconds of steps that a checkpoint has. Waiting for data, compiling,
evaluating, writing, steps that a crash undid and the time until somebody started the
run again are not: all of it is time since the stage first started.
"""

from __future__ import annotations

import contextlib
import json
import time

from rq import distributed
from rq.checkpoint import folder

FILE = "goodput.json"


class Goodput:
    """Counts, and keeps what it counted beside the checkpoints, in `goodput.json`.

    Attributes:
      seconds: of steps so far, over all restarts.
    """

    def __init__(self, directory, step: int, now=time.time):
        """Goes on from what was counted at a step; from nothing where that is unknown.

        Args:
          directory: of the stage's checkpoints.
          step: of the checkpoint that training goes on from, 0 without one.
          now: seconds; of all clocks, that which goes on while no process runs.
        """
        self._path, self._now = folder(directory) / FILE, now
        known = json.loads(self._path.read_text()) if self._path.exists() else {}
        self._started = known.get("started", now())
        # Steps after this one are undone: what was counted for them is lost time.
        counted = {int(at): spent for at, spent in known.get("seconds", {}).items()}
        self._saved = {at: spent for at, spent in counted.items() if at <= step}
        self.seconds = self._saved.get(step, 0.0)

    @contextlib.contextmanager
    def counting(self):
        """Around what makes progress."""
        start = self._now()
        yield
        self.seconds += self._now() - start

    def share(self) -> float:
        """Of the time since the stage first started, in [0, 1]."""
        return min(1.0, self.seconds / max(self._now() - self._started, 1e-9))

    def save(self, step: int) -> None:
        """Notes what was counted when a checkpoint is written."""
        self._saved[step] = self.seconds
        if distributed.is_first():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            noted = {"started": self._started, "seconds": self._saved}
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text(json.dumps(noted))
            temporary.replace(self._path)
