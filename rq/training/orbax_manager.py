# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Orbax's checkpoint manager, with the policy for which checkpoints to keep."""

from __future__ import annotations

from collections.abc import Callable

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers


class Manager(ocp.CheckpointManager):
    """Writes in the background; keeps the latest, regular and best checkpoints."""

    def __init__(
        self,
        directory,
        keep: int,
        keep_every: int,
        best_step: Callable[[], int | None],
        before_commit: Callable[[], None],
    ):
        """Opens a folder, and removes incomplete checkpoints of a killed process.

        Args:
          directory: folder of the checkpoints.
          keep: number of latest checkpoints to keep.
          keep_every: also keep steps that are multiples of this; 0 for none.
          best_step: function that returns another step to keep, or None.
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
        """Returns False: `rq.parallel.preemption` handles SIGTERM for all stages."""
        return False


class _Policy(checkpoint_managers.PreservationPolicy):
    def __init__(self, keep: int, keep_every: int, best_step):
        self._keep, self._every, self._best_step = keep, keep_every, best_step

    def should_preserve(self, checkpoints, *, context):
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self._keep :], self._best_step()}
        return [s in kept or bool(self._every and s % self._every == 0) for s in steps]
