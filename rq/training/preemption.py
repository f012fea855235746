# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""SIGTERM: heard by one process, obeyed by all of them at the same point."""

from __future__ import annotations

import itertools
import signal
import threading

import jax
from jax.experimental import multihost_utils

PREEMPTED = 143  # exit status after SIGTERM, 128 + 15 as shells have it

# How often this process has asked, in all stages together. The service of
# `jax.distributed` stops every process at the next number that none has reached, so it
# must never start over: a signal that comes before the first step would be missed.
_asked = itertools.count(1)


class Preempted(SystemExit):
    """A SIGTERM was obeyed: all is saved, and the process should end."""

    def __init__(self):
        super().__init__(PREEMPTED)


def agreed() -> bool:
    """Whether the processes stop here, because one of them has heard a SIGTERM.

    All of them must ask equally often, at the same points. False where
    `jax.distributed` does not run.
    """
    return multihost_utils.reached_preemption_sync_point(next(_asked))


class Stop:
    """Whether a SIGTERM has come, while it is entered.

    A process alone hears it itself; of several, the service of `jax.distributed` does,
    and its answer is the same in all of them.
    """

    def __init__(self):
        self.signalled = False
        # Python lets the main thread alone set handlers.
        main = threading.current_thread() is threading.main_thread()
        self._listens = main and jax.process_count() == 1

    def __enter__(self):
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, error_type, *_):
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)
        if self.signalled and error_type is None:
            # It came during the last evaluation: what follows must not start.
            raise Preempted

    def _hear(self, *_) -> None:
        self.signalled = True

    def requested(self) -> bool:
        """After each step, in all processes."""
        return agreed() if jax.process_count() > 1 else self.signalled
