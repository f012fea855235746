# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Goodput of a stage over all its restarts: the share of time that made progress.

Counted are the seconds of steps that a checkpoint has, less those in which the devices
stood still for want of data. Compiling, evaluating, writing, steps that a crash undid
and the time until somebody started the run again are not: all of it is time since the
stage first started.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time

import jax

from rq.parallel import atomic_files, processes
from rq.training.checkpoint import folder

FILE = "goodput.json"


class Goodput:
    """Counts, and keeps what it counted beside the checkpoints, in `goodput.json`.

    Attributes:
      seconds: of steps so far, over all restarts.
      stalled: seconds of this process in which the devices had no batch to work on.
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
        self.stalled = 0.0
        self._work = _Work(now)
        self._write()

    @contextlib.contextmanager
    def counting(self):
        """Around what makes progress, waiting for its data included."""
        start, stalled = self._now(), self.stalled
        yield
        self.seconds += self._now() - start - (self.stalled - stalled)

    @contextlib.contextmanager
    def waiting(self):
        """Around the wait for a batch: a stall from when the devices have finished."""
        start = self._now()
        yield
        self.stalled += self._work.idle(start, self._now())

    def dispatched(self, values) -> None:
        """Takes the arrays that a step on its way to the devices will yield."""
        self._work.add(values)

    def share(self) -> float:
        """Of the time since the stage first started, in [0, 1]."""
        return min(1.0, self.seconds / max(self._now() - self._started, 1e-9))

    def save(self, step: int) -> None:
        """Notes what was counted when a checkpoint is written."""
        self._saved[step] = self.seconds
        self._write()

    def _write(self) -> None:
        if not processes.is_process_0():
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        noted = {"started": self._started, "seconds": self._saved}
        atomic_files.write_json(self._path, noted)

    def close(self) -> None:
        """Lets go of the thread that watches the devices."""
        self._work.close()


class _Work:
    """Since when the devices have nothing to do: a thread waits for each step's values.

    The loop itself must not: it would dispatch the next step only then.
    """

    def __init__(self, now):
        self._now, self._queue = now, queue.SimpleQueue()
        self._given = 0  # steps
        self._done = 0, 0.0  # steps, and when the last of them was
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def add(self, values) -> None:
        self._given += 1
        self._queue.put(values)

    def idle(self, start: float, end: float) -> float:
        """Seconds of the interval; none before the first step, which nothing awaits."""
        done, when = self._done
        if done < self._given or not done:
            return 0.0
        return end - max(start, when)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _watch(self) -> None:
        while (values := self._queue.get()) is not None:
            # A step that fails does so in the loop too, which tells of it.
            with contextlib.suppress(Exception):
                jax.block_until_ready(values)
            self._done = self._done[0] + 1, self._now()
