# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Stops all processes at the same point after SIGTERM."""

from __future__ import annotations

import itertools
import signal
import threading

import jax
from absl import logging
from jax.experimental import multihost_utils

PREEMPTED = 143  # exit code after SIGTERM, 128 + 15 as in shells

# Number of calls of `reached_stop` in this process, over all stages. `jax.distributed`
# stops all processes at the next number that none has reached. If a stage started
# again from 1, a signal before its first step would be missed.
_calls = itertools.count(1)


class Preempted(SystemExit):
    """Ends the process after SIGTERM; raised when everything is saved."""

    def __init__(self):
        super().__init__(PREEMPTED)


def reached_stop() -> bool:
    """Returns whether all processes must stop here because one received SIGTERM.

    All processes must call it the same number of times, at the same points. Always
    False if `jax.distributed` is not running: SIGTERM then ends the process at once.
    """
    return multihost_utils.reached_preemption_sync_point(next(_calls))


def exit_on_stop(name: str) -> None:
    """Raises `Preempted` in all processes if `reached_stop`.

    Call it when all results are saved, at the same points in all processes.

    Args:
      name: task that is interrupted, for the log.
    """
    if reached_stop():
        logging.info("%s: SIGTERM; finished parts are kept", name)
        raise Preempted


class StopSignal:
    """Context manager that records SIGTERM instead of ending the process.

    A single process handles the signal itself. With several, `jax.distributed` does,
    and `requested` returns the same in all of them.
    """

    def __init__(self):
        self.received = False
        # Python lets only the main thread set handlers.
        main = threading.current_thread() is threading.main_thread()
        self._handles = main and jax.process_count() == 1

    def __enter__(self):
        if self._handles:
            self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, error_type, *_):
        if self._handles:
            signal.signal(signal.SIGTERM, self._before)
        if self.received and error_type is None:
            # SIGTERM came during the last evaluation: the next stage must not start.
            raise Preempted

    def _receive(self, *_) -> None:
        self.received = True

    def requested(self) -> bool:
        """Returns whether to stop; all processes must call it after each step."""
        return reached_stop() if jax.process_count() > 1 else self.received
