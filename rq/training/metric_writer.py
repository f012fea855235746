# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes scalars, pictures, profiles and progress lines of a training, with CLU.

Only this module needs TensorFlow, for event files.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import math
import time

import jax
import numpy as np
from absl import logging
from clu import metric_writers, periodic_actions

from rq import flops

SECONDS = 10.0  # between progress lines
GIB = 2**30


def make_writer(directory) -> metric_writers.MetricWriter:
    """Returns a writer to the log and, in process 0, to TensorBoard."""
    return metric_writers.create_default_writer(
        directory, just_logging=jax.process_index() > 0
    )


def write_evaluation(writer, step: int, metrics: dict, pictures: dict) -> None:
    """Writes scalars under `eval/`, and pictures, uint8 `[H, W, 3]` each."""
    writer.write_scalars(step, {f"eval/{k}": v for k, v in metrics.items()})
    writer.write_images(step, {k: np.asarray(v)[None] for k, v in pictures.items()})


def make_profile(config, directory, steps: int):
    """Returns CLU's `Profile` for the steps in the config's section `profile`.

    Call the result before each step, with the step's number. It does nothing if
    profiling is off or this is not process 0.
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


class InputWait:
    """Measures how long the devices are idle because a batch is not ready.

    A thread waits for the outputs of each step. If the loop itself waited, it would
    dispatch the next step too late.

    Attributes:
      seconds: idle time so far.
    """

    def __init__(self, now=time.monotonic):
        self.seconds = 0.0
        self._now = now
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._finished = None  # future of the time at which the latest step ended

    def dispatched(self, outputs) -> None:
        """Starts to wait, in the thread, for the outputs of a dispatched step."""
        self._finished = self._thread.submit(self._time_when_ready, outputs)

    def _time_when_ready(self, outputs) -> float:
        with contextlib.suppress(Exception):  # the loop raises a failing step's error
            jax.block_until_ready(outputs)
        return self._now()

    @contextlib.contextmanager
    def waiting(self):
        """Wraps the wait for a batch; idle time starts when the previous step ends."""
        start = self._now()
        yield
        end = self._now()
        if self._finished is not None and self._finished.done():
            self.seconds += end - max(start, self._finished.result())

    def close(self) -> None:
        """Stops the thread."""
        self._thread.shutdown()


class Progress:
    """Reports the speed of a training every `SECONDS`, to the log and TensorBoard.

    Rates are means over the interval since the last report, with evaluation and
    checkpoints: images, codes and FLOPs per second, model FLOPs utilisation (MFU) if
    the devices' peak is known, and the fraction of time spent waiting for input. Memory
    is that of this process's fullest device.

    Attributes:
      step_flops: model FLOPs of a step over all devices; set it when known.
    """

    def __init__(self, stage, writer, input_wait: InputWait):
        """Starts the clock; `stage` as in `rq.training.stages.stage.Stage`."""
        self.step_flops = 0.0
        self._stage, self._writer, self._input_wait = stage, writer, input_wait
        self._start = time.monotonic()
        self._last = None  # step and time of the last report
        self._waited = 0.0  # seconds of input wait up to the last report
        self._parts = collections.defaultdict(float)  # seconds by name

    @contextlib.contextmanager
    def timed(self, name: str):
        """Adds the body's time to a total that progress lines show by name."""
        start = time.monotonic()
        yield
        self._parts[name] += time.monotonic() - start

    def __call__(self, step: int, loss: float | None = None) -> None:
        """Reports every `SECONDS` and at the last step; call it after each step.

        The first call only starts the first interval, which thus excludes compilation.
        """
        now = time.monotonic()
        if self._last is None:
            self._last = step, now
            return
        steps, seconds = step - self._last[0], now - self._last[1]
        if seconds > SECONDS or step == self._stage.steps:
            self._report(step, loss, self.rates(steps, seconds))
            self._last = step, now

    def rates(self, steps: int, seconds: float) -> dict[str, float]:
        """Returns the scalars of an interval, from its steps and seconds."""
        rate = steps / seconds
        images = rate * self._stage.batch_size
        device_flops = rate * self.step_flops / jax.device_count()
        before, self._waited = self._waited, self._input_wait.seconds
        scalars = {
            "steps_per_sec": rate,
            "images_per_sec": images,
            "codes_per_sec": images * self._stage.codes_per_image,
            "teraflops_per_device": device_flops / 1e12,
            "input_wait_fraction": (self._waited - before) / seconds,
            "uptime": time.monotonic() - self._start,
        }
        peak = flops.peak_flops(jax.devices()[0].device_kind)
        if peak:
            scalars["mfu"] = device_flops / peak
        used = [d.memory_stats() or {} for d in jax.local_devices()]
        for name in ("bytes_in_use", "peak_bytes_in_use"):
            if all(name in stats for stats in used):
                scalars[name] = float(max(stats[name] for stats in used))
        return scalars

    def _report(self, step: int, loss: float | None, scalars: dict) -> None:
        steps, elapsed = self._stage.steps, scalars["uptime"]
        details = [
            f"{100 * seconds / elapsed:.0f}% {part}"
            for part, seconds in sorted(self._parts.items())
        ]
        details.append(f"{100 * self._waited / elapsed:.0f}% waiting for input")
        if "mfu" in scalars:
            details.append(f"MFU {100 * scalars['mfu']:.0f}%")
        if "peak_bytes_in_use" in scalars:
            details.append(f"{scalars['peak_bytes_in_use'] / GIB:.1f} GiB")
        left = duration((steps - step) / scalars["steps_per_sec"])
        logging.info(
            f"{self._stage.name} {step}/{steps} ({100 * step / steps:.1f}%), "
            + ("" if loss is None else f"loss {loss:.4g}, ")
            + f"{scalars['images_per_sec']:.4g} images/s, ETA {left} "
            f"(so far {duration(elapsed)}, {', '.join(details)})"
        )
        self._writer.write_scalars(step, scalars)


def duration(seconds: float) -> str:
    """Returns seconds as '12s', '3m05s', '2h07m' or '4d01h'."""
    seconds = math.ceil(seconds)
    for unit, size, part, below in (("d", 86400, "h", 3600), ("h", 3600, "m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // below:02d}{part}"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"
