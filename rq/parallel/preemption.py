# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Stopping on SIGTERM, at the same point in all processes."""

from __future__ import annotations

import itertools
import signal
import threading

import jax
from absl import logging
from jax.experimental import multihost_utils

PREEMPTED = 143  # exit code after SIGTERM, 128 + 15 as shells have it

# How often this process has asked, in all stages together. The service of
# `jax.distributed` stops every process at the next number that none has reached, so it
# must never start over: a signal that comes before the first step would be missed.
_asked = itertools.count(1)


class Preempted(SystemExit):
    """Ends the process after a SIGTERM, once everything is saved."""

    def __init__(self):
        super().__init__(PREEMPTED)


def reached_stop() -> bool:
    """Returns whether all processes stop here because one has received SIGTERM.

    All processes must call it equally often, at the same points. False where
    `jax.distributed` does not run: there SIGTERM ends the process at once.
    """
    return multihost_utils.reached_preemption_sync_point(next(_asked))


def exit_on_stop(name: str) -> None:
    """Raises `Preempted` in all processes if `reached_stop`.

    Call it where nothing unsaved would be lost, at the same points in all processes.

    Args:
      name: of what is under way, for the log.
    """
    if reached_stop():
        logging.info("%s: SIGTERM; what is finished stays", name)
        raise Preempted


class StopSignal:
    """Context manager that records SIGTERM rather than end the process.

    One process alone handles the signal itself. Of several, the service of
    `jax.distributed` does, and gives all of them the same answer.
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
            # It came during the last evaluation: what follows must not start.
            raise Preempted

    def _receive(self, *_) -> None:
        self.received = True

    def requested(self) -> bool:
        """Returns whether to stop; all processes call it after each step."""
        return reached_stop() if jax.process_count() > 1 else self.received
