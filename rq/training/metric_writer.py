# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes scalars, pictures and profiles of a training with CLU, and shows its speed.

Only this module needs TensorFlow, for event files.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import os
import time

import jax
import numpy as np
from absl import logging

from rq import flops, progress
from rq.config.schema import fields as config_fields

# TensorFlow's CPU kernels, which are not used here, announce themselves at each import.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from clu import metric_writers, periodic_actions  # noqa: E402


def make_writer(events, wandb_project: str, workdir) -> metric_writers.MetricWriter:
    """Returns a writer to the log and, in process 0, to TensorBoard and any others.

    Args:
      events: folder of TensorBoard's events; its name is that of the stage.
      wandb_project: project of Weights & Biases to write to as well; '': none.
      workdir: the run directory.

    Raises:
      ConfigError: if Weights & Biases cannot be used.
    """
    writer = metric_writers.create_default_writer(
        events, just_logging=jax.process_index() > 0
    )
    if not wandb_project or jax.process_index() > 0:
        return writer
    from rq.training import wandb_writer  # an optional package

    other = wandb_writer.WandbWriter(wandb_project, workdir, events.name)
    return metric_writers.MultiWriter([writer, metric_writers.AsyncWriter(other)])


def write_settings(writer, step: int, config) -> None:
    """Writes all fields of a config, as hyperparameters and as a text."""
    fields = config_fields(config)
    lines = [f"    {name} = {value!r}" for name, value in fields.items()]
    writer.write_texts(step, {"config": "\n".join(lines)})  # indented: code
    kinds = (bool, int, float, str)
    writer.write_hparams(
        {k: v if isinstance(v, kinds) else repr(v) for k, v in fields.items()}
    )


def write_evaluation(writer, step: int, metrics: dict, shown: dict) -> None:
    """Writes the results of an evaluation.

    Args:
      writer: the writer.
      step: step that was evaluated.
      metrics: scalars by name, written under `eval/`.
      shown: by name, pictures uint8 `[H, W, 3]`, and numbers `[N]` whose histogram is
        written.
    """
    writer.write_scalars(step, {f"eval/{k}": v for k, v in metrics.items()})
    arrays = {k: np.asarray(v) for k, v in shown.items()}
    writer.write_images(step, {k: v[None] for k, v in arrays.items() if v.ndim == 3})
    writer.write_histograms(step, {k: v for k, v in arrays.items() if v.ndim == 1})


def evaluation_line(metrics: dict, criterion: str, shown: dict) -> str:
    """Returns the results of an evaluation in one line, for `write_evaluation`'s.

    It has the criterion and the metrics that are not by depth, and names the pictures.
    """
    names = [criterion, *(k for k in metrics if "depth_" not in k and k != criterion)]
    line = ", ".join(f"{name} {metrics[name]:.4g}" for name in names)
    pictures = [name for name, value in shown.items() if np.ndim(value) == 3]
    return f"{line}; pictures: {', '.join(pictures)}" if pictures else line


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
    """Shows a training's progress, and writes its speed every `every` steps.

    Rates are means over the interval since the last report, with evaluation and
    checkpoints: images, codes and FLOPs per second, model FLOPs utilisation (MFU) if
    the devices' peak is known, and the fraction of time spent waiting for input. Memory
    is that of this process's fullest device.

    Attributes:
      step_flops: model FLOPs of a step over all devices; set it when known.
    """

    def __init__(self, stage, writer, input_wait: InputWait, first: int, every: int):
        """Starts the clock, and shows the bar.

        Args:
          stage: as in `rq.training.stages.stage.Stage`.
          writer: takes the scalars.
          input_wait: of this training.
          first: number of steps done before.
          every: steps between reports.
        """
        self.step_flops = 0.0
        self._stage, self._writer, self._input_wait = stage, writer, input_wait
        self._every = every
        self._bar = progress.Bar(
            stage.name, stage.steps, done=first, size=stage.batch_size, every=every
        )
        self._bar.say("compiling")
        self._start = time.monotonic()
        # Step and time of the last report.
        self._last: tuple[int, float] | None = None
        self._waited = 0.0  # seconds of input wait up to the last report
        self._parts = collections.defaultdict(float)  # seconds by name

    @contextlib.contextmanager
    def timed(self, name: str):
        """Adds the body's time to a total by name; the bar shows the name meanwhile."""
        start, note = time.monotonic(), self._bar.note
        self._bar.say(name)
        yield
        self._bar.say(note)
        self._parts[name] += time.monotonic() - start

    def __call__(self, step: int, loss: float | None = None) -> None:
        """Counts a step; reports every `every` steps and at the last one.

        The first call only starts the first interval, which thus excludes compilation.

        Args:
          step: the step that was dispatched.
          loss: of the step before, which is finished; None if there was none.
        """
        self._bar.note = "" if loss is None else f"loss {loss:.4g}"
        self._bar.update(timed=self._last is not None)
        now = time.monotonic()
        if self._last is None:
            self._last = step, now
        elif step % self._every == 0 or step == self._stage.steps:
            steps, seconds = step - self._last[0], now - self._last[1]
            self._writer.write_scalars(step, self.rates(steps, seconds))
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

    def close(self, finished: bool) -> None:
        """Ends the bar; if the training is `finished`, logs what the time went into."""
        self._bar.close(finished)
        if finished:
            elapsed = time.monotonic() - self._start
            parts = self._parts | {"waiting for input": self._input_wait.seconds}
            logging.info(
                "%s: %s with compilation, %s",
                self._stage.name,
                progress.duration(elapsed),
                ", ".join(f"{100 * s / elapsed:.0f}% {p}" for p, s in parts.items()),
            )
