# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests the reported rates, utilisation and input wait of a run."""

import threading
import time

import jax
import jax.numpy as jnp
import pytest
from toy import BATCH, Batches, Toy, fit

from rq import config as config_lib
from rq import flops
from rq.training import metric_writer


class Clock:
    """A clock that the test sets."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Scalars:
    """Keeps the scalars that are written."""

    def __init__(self):
        self.written = {}

    def write_scalars(self, step, scalars):
        self.written.setdefault(step, {}).update(scalars)

    def write_images(self, step, images):
        pass

    def close(self):
        pass


class Values:
    """A step's outputs, which are ready after `finish`."""

    def __init__(self):
        self.finished, self.seen = threading.Event(), threading.Event()

    def block_until_ready(self):
        self.finished.wait()


@pytest.mark.parametrize(
    "finished, idle",
    [(None, 0.0), (3.0, 8.0), (-5.0, 11.0)],
    ids=["devices at work", "while waiting", "before"],
)
def test_waiting_counts_from_when_the_devices_are_idle(finished, idle):
    """The wait is 11 s; the previous step ends `finished` seconds after its start."""
    clock, values = Clock(), Values()
    waits = metric_writer.InputWait(clock)
    with waits.waiting():
        clock.now += 7  # for the first batch, before any step

    def finish():
        values.finished.set()
        waits._finished.result()  # until the thread has read the clock

    waits.dispatched(values)
    clock.now += 9
    if finished is not None and finished < 0:
        clock.now += finished
        finish()
        clock.now -= finished
    with waits.waiting():
        if finished is not None and finished > 0:
            clock.now += finished
            finish()
            clock.now -= finished
        clock.now += 11
    values.finished.set()
    waits.close()
    assert waits.seconds == idle


def test_rates_are_of_the_interval_and_the_counted_flops(monkeypatch):
    # This device has no published peak.
    monkeypatch.setitem(flops.PEAKS, "cpu", 1e9)
    waits = metric_writer.InputWait()
    report = metric_writer.Progress(Toy(4), Scalars(), waits)
    x, w = jnp.ones((8, 16)), jnp.ones((16, 32))
    traced = jax.jit(lambda x, w: x @ w).trace(x, w)
    report.step_flops = flops.program_flops(traced.jaxpr)
    waits.seconds += 0.1
    found = report.rates(steps=10, seconds=2.0)
    each = 5 * (2 * 8 * 16 * 32) / jax.device_count()
    assert found["steps_per_sec"] == 5
    assert found["images_per_sec"] == 5 * BATCH
    assert found["codes_per_sec"] == 5 * BATCH * Toy.codes_per_image
    assert found["teraflops_per_device"] == pytest.approx(each / 1e12)
    assert found["mfu"] == pytest.approx(each / 1e9)
    assert found["input_wait_fraction"] == pytest.approx(0.05)
    # The next interval starts with no waiting.
    assert report.rates(steps=1, seconds=1.0)["input_wait_fraction"] == 0


def test_memory_is_that_of_the_fullest_device(monkeypatch):
    class Device:
        def __init__(self, used):
            self.used = used

        def memory_stats(self):
            return {"bytes_in_use": self.used, "peak_bytes_in_use": 2 * self.used}

    report = metric_writer.Progress(Toy(4), Scalars(), metric_writer.InputWait())
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(3), Device(5), Device(4)])
    found = report.rates(steps=1, seconds=1.0)
    assert found["bytes_in_use"] == 5 and found["peak_bytes_in_use"] == 10


def test_the_time_of_a_part_is_the_sum_over_its_calls(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(metric_writer.time, "monotonic", clock)
    report = metric_writer.Progress(Toy(4), Scalars(), metric_writer.InputWait(clock))
    for name, seconds in (("evaluation", 3), ("pictures", 1), ("evaluation", 4)):
        with report.timed(name):
            clock.now += seconds
    assert report._parts == {"evaluation": 7, "pictures": 1}


def test_a_profile_has_the_steps_of_the_config(tmp_path, monkeypatch):
    events = []
    for name in ("start", "stop"):
        monkeypatch.setattr(
            metric_writer.periodic_actions.profiler,
            name,
            lambda *args, name=name, **options: events.append((name, step)),
        )
    config = config_lib.default().profile
    for start, length, expected in ((3, 2, (3, 5)), (6, 99, (6, 8))):
        config.start, config.steps = start, length
        profile = metric_writer.make_profile(config, str(tmp_path), 8)
        for step in range(9):
            profile(step)
        assert events == [("start", expected[0]), ("stop", expected[1])]
        events.clear()
    config.start = 8
    assert metric_writer.make_profile(config, str(tmp_path), 8)(8) is None


def test_a_slow_input_shows(tmp_path, monkeypatch):
    written = Scalars()
    monkeypatch.setattr(metric_writer, "SECONDS", 0.0)
    monkeypatch.setattr(metric_writer, "make_writer", lambda _: written)
    data = Batches(act=lambda index: time.sleep(0.2))
    fit(Toy(8), tmp_path, data, checkpoint_every=100, log_eval_every=100)
    name = "input_wait_fraction"
    found = [s[name] for s in written.written.values() if name in s]
    assert sorted(found)[len(found) // 2] > 0.8, found


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5e", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU v4", 275e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("cpu", None),
    ],
)
def test_peaks_are_found_by_device_kind(kind, peak):
    assert flops.peak_flops(kind) == peak
