# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is written while a stage trains: scalars, pictures, progress, by CLU.

The only module that needs TensorFlow, for its event files.
"""

from __future__ import annotations

import math
import time

import jax
import numpy as np
from clu import metric_writers, periodic_actions, platform

SECONDS = 10.0  # between two lines of progress


def make_writer(directory) -> metric_writers.MetricWriter:
    """Writes to TensorBoard and the log; to the log alone in all processes but one."""
    return metric_writers.create_default_writer(
        directory, just_logging=jax.process_index() > 0
    )


def write_evaluation(writer, step: int, metrics: dict, pictures: dict) -> None:
    """Scalars under `eval/`, and pictures, uint8 `[H, W, 3]` each."""
    writer.write_scalars(step, {f"eval/{k}": v for k, v in metrics.items()})
    writer.write_images(step, {k: np.asarray(v)[None] for k, v in pictures.items()})


def make_profile(config, directory, steps: int):
    """CLU's `Profile` over the steps that the config's `profile` section asks for.

    It is called with the number of a step before that step; in all processes but one,
    and where it is off, with no effect.
    """
    length = min(config.steps, steps - config.start)
    if length <= 0 or jax.process_index() > 0:
        return lambda step: None
    return periodic_actions.Profile(
        logdir=directory,
        first_profile=config.start,
        num_profile_steps=length,
        profile_duration_ms=None,
        every_secs=None,
    )


class Progress(periodic_actions.ReportProgress):
    """`ReportProgress` whose note also has the stage, images a second, and seconds.

    Rate and remaining time are of the interval since the last note, with whatever
    evaluation and checkpoints it had in it.
    """

    def __init__(self, stage, writer):
        """Reports on `stage` (name, steps, batch_size) every `SECONDS`."""
        super().__init__(num_train_steps=stage.steps, writer=writer, every_secs=SECONDS)
        self._stage = stage

    def _apply(self, step: int, t: float) -> None:
        rate = (step - self._previous_step) / (t - self._previous_time)
        images = rate * self._stage.batch_size
        steps = self._stage.steps
        elapsed = time.monotonic() - self._t0
        shares = [
            f", {100 * seconds / elapsed:.0f}% {part}"
            for part, seconds in sorted(self._time_per_part.items())
        ]
        platform.work_unit().set_notes(
            f"{self._stage.name} {step}/{steps} ({100 * step / steps:.1f}%), "
            f"{images:.4g} images/s, ETA {duration((steps - step) / rate)} "
            f"(so far {duration(elapsed)}{''.join(shares)})"
        )
        self._writer.write_scalars(
            step,
            {"images_per_sec": images, "steps_per_sec": rate, "uptime": elapsed},
        )


def duration(seconds: float) -> str:
    """Seconds as '12s', '3m05s', '2h07m' or '4d01h'."""
    seconds = math.ceil(seconds)
    for unit, size, part, below in (("d", 86400, "h", 3600), ("h", 3600, "m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // below:02d}{part}"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"
