# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Orbax's checkpoint manager, with the rule for which checkpoints to keep."""

from __future__ import annotations

import logging as python_logging
import os
import sys
from collections.abc import Callable

import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

ORBAX = f"{os.sep}orbax{os.sep}"


def _is_logged(record: python_logging.LogRecord) -> bool:
    """Returns whether a record is not one of Orbax's that only repeat.

    Orbax logs some 70 lines for each checkpoint, in which progress would drown. An
    error of its threads is raised again where the write is waited for.
    """
    if ORBAX not in record.pathname:
        return True
    return record.levelno >= python_logging.WARNING and not record.exc_info


logging.get_absl_logger().addFilter(_is_logged)


def _without_closed_loops(report):
    """Returns an `excepthook` that leaves out what follows from a failed write.

    TensorStore prints a traceback for each array whose write ends after another one
    has failed, and with it the loop that waits for all of them.
    """

    def hook(kind, error, traceback):
        if not (kind is RuntimeError and str(error) == "Event loop is closed"):
            report(kind, error, traceback)

    return hook


sys.excepthook = _without_closed_loops(sys.excepthook)


class Manager(ocp.CheckpointManager):
    """Writes in the background; removes what is neither recent, regular nor best."""

    def __init__(
        self,
        directory,
        keep: int,
        keep_every: int,
        best_step: Callable[[], int | None],
        before_commit: Callable[[], None],
    ):
        """Opens a folder, and removes what a killed process left half-written.

        Args:
          directory: of the checkpoints.
          keep: number of latest checkpoints that stay.
          keep_every: those of multiples of so many steps stay too; 0: none.
          best_step: returns a further step that stays.
          before_commit: called in the background before a checkpoint becomes visible.
        """
        super().__init__(
            directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_Policy(keep, keep_every, best_step),
                cleanup_tmp_directories=True,
                async_options=ocp.options.AsyncOptions(
                    post_finalization_callback=before_commit
                ),
            ),
        )

    def reached_preemption(self, step: int) -> bool:
        """Returns False: `rq.parallel.preemption` asks, once for all stages."""
        return False


class _Policy(checkpoint_managers.PreservationPolicy):
    def __init__(self, keep: int, keep_every: int, best_step):
        self._keep, self._every, self._best_step = keep, keep_every, best_step

    def should_preserve(self, checkpoints, *, context):
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self._keep :], self._best_step()}
        return [s in kept or bool(self._every and s % self._every == 0) for s in steps]
