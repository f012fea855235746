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

from rq.aot import chips, compiled_report

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
    """`ReportProgress` that also tells what the hardware and the waiting are worth.

    Rates are of the interval since the last note, with whatever evaluation and
    checkpoints it had in it: images, codes and operations a second, model FLOPs
    utilisation (MFU) where the peak of the devices is known, and the share of the time
    in which the devices had no batch to work on. Memory is that of this process's
    fullest device.
    """

    def __init__(self, stage, writer, goodput):
        """Reports on `stage` (see `rq.training.stages.stage.Stage`) every `SECONDS`."""
        super().__init__(num_train_steps=stage.steps, writer=writer, every_secs=SECONDS)
        self._stage, self._goodput = stage, goodput
        self._operations = 0.0
        self._stalled = 0.0

    def count_operations(self, config, mesh, traced) -> None:
        """Takes the operations that a step needs, from its trace."""
        self._operations = compiled_report.model_operations(
            config, self._stage.name, mesh, traced
        )

    def rates(self, steps: int, seconds: float) -> dict[str, float]:
        """Scalars of an interval of so many steps and seconds, and of this moment."""
        rate = steps / seconds
        images = rate * self._stage.batch_size
        operations = rate * self._operations / jax.device_count()
        before, self._stalled = self._stalled, self._goodput.stalled
        scalars = {
            "steps_per_sec": rate,
            "images_per_sec": images,
            "codes_per_sec": images * self._stage.codes_per_image,
            "teraflops_per_device": operations / 1e12,
            "input_share": (self._stalled - before) / seconds,
            "goodput": self._goodput.share(),
            "uptime": time.monotonic() - self._t0,
        }
        peak = chips.peak_flops(jax.devices()[0].device_kind)
        if peak:
            scalars["mfu"] = operations / peak
        used = [d.memory_stats() or {} for d in jax.local_devices()]
        for name in ("bytes_in_use", "peak_bytes_in_use"):
            if all(name in stats for stats in used):
                scalars[name] = float(max(stats[name] for stats in used))
        return scalars

    def _apply(self, step: int, t: float) -> None:
        scalars = self.rates(step - self._previous_step, t - self._previous_time)
        steps = self._stage.steps
        elapsed = scalars["uptime"]
        shares = [
            f"{100 * seconds / elapsed:.0f}% {part}"
            for part, seconds in sorted(self._time_per_part.items())
        ]
        shares.append(f"{100 * self._stalled / elapsed:.0f}% input")
        shares.append(f"goodput {100 * scalars['goodput']:.0f}%")
        if "mfu" in scalars:
            shares.append(f"MFU {100 * scalars['mfu']:.0f}%")
        if "peak_bytes_in_use" in scalars:
            shares.append(f"{scalars['peak_bytes_in_use'] / chips.GIB:.1f} GiB")
        left = duration((steps - step) / scalars["steps_per_sec"])
        platform.work_unit().set_notes(
            f"{self._stage.name} {step}/{steps} ({100 * step / steps:.1f}%), "
            f"{scalars['images_per_sec']:.4g} images/s, ETA {left} "
            f"(so far {duration(elapsed)}, {', '.join(shares)})"
        )
        self._writer.write_scalars(step, scalars)


def duration(seconds: float) -> str:
    """Seconds as '12s', '3m05s', '2h07m' or '4d01h'."""
    seconds = math.ceil(seconds)
    for unit, size, part, below in (("d", 86400, "h", 3600), ("h", 3600, "m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // below:02d}{part}"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"
