# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run tells of itself: rates, utilisation, waiting, goodput over restarts."""

import json
import threading
import time

import jax
import jax.numpy as jnp
import pytest
from toy import BATCH, Batches, Toy, fit

from rq.aot import chips
from rq.training import metric_writer
from rq.training.goodput import Goodput


class Clock:
    """Seconds that pass when told."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def work(self, goodput, seconds):
        with goodput.counting():
            self.now += seconds


class Scalars:
    """Keeps what is written."""

    def __init__(self):
        self.written = {}

    def write_scalars(self, step, scalars):
        self.written.setdefault(step, {}).update(scalars)

    def write_images(self, step, images):
        pass

    def close(self):
        pass


def test_goodput_is_the_share_of_counted_seconds(tmp_path):
    clock = Clock()
    goodput = Goodput(tmp_path, 0, clock)
    clock.work(goodput, 6.0)
    clock.now += 2  # evaluating, writing
    assert goodput.share() == pytest.approx(6 / 8)


class Values:
    """What a step will yield: whoever waits for it waits for `finish`."""

    def __init__(self):
        self.finished, self.seen = threading.Event(), threading.Event()

    def block_until_ready(self):
        self.finished.wait()


@pytest.mark.parametrize(
    "finished, stalled",
    [(None, 0.0), (3.0, 8.0), (-5.0, 11.0)],
    ids=["devices at work", "while waiting", "before"],
)
def test_waiting_counts_from_when_the_devices_have_nothing_to_do(
    tmp_path, finished, stalled
):
    """A wait of 11 s; the step before it is done so many seconds after its start."""
    clock, values = Clock(), Values()
    goodput = Goodput(tmp_path, 0, clock)
    with goodput.waiting():
        clock.now += 7  # for the first batch, when there is nothing to overlap with

    def finish():
        values.finished.set()
        while goodput._work._done[0] < 1:  # the thread that watches notes the time
            time.sleep(0.001)

    with goodput.counting():
        goodput.dispatched(values)
        clock.now += 9
        if finished is not None and finished < 0:
            clock.now += finished
            finish()
            clock.now -= finished
        with goodput.waiting():
            if finished is not None and finished > 0:
                clock.now += finished
                finish()
                clock.now -= finished
            clock.now += 11
    values.finished.set()
    goodput.close()
    assert goodput.stalled == stalled
    assert goodput.seconds == 20 - stalled


def test_goodput_counts_on_over_restarts_and_forgets_what_was_undone(tmp_path):
    clock = Clock()
    goodput = Goodput(tmp_path, 0, clock)
    for step in (10, 20):
        clock.work(goodput, 5.0)
        goodput.save(step)
    clock.work(goodput, 3.0)  # no checkpoint has these, and then it is killed
    clock.now += 7
    again = Goodput(tmp_path, 20, clock)
    assert again.seconds == 10 and again.share() == pytest.approx(10 / 20)
    # The checkpoint of step 20 turns out to be damaged.
    earlier = Goodput(tmp_path, 10, clock)
    assert earlier.seconds == 5
    clock.work(earlier, 5.0)
    earlier.save(20)
    assert Goodput(tmp_path, 20, clock).share() == pytest.approx(10 / 25)


def test_a_restart_goes_on_counting_from_its_checkpoint(tmp_path):
    fit(Toy(4), tmp_path, checkpoint_every=2)
    file = tmp_path / Toy.name / "goodput.json"
    first = json.loads(file.read_text())
    assert list(first["seconds"]) == ["2", "4"]
    fit(Toy(6), tmp_path, checkpoint_every=2)
    second = json.loads(file.read_text())
    assert second["started"] == first["started"]
    assert list(second["seconds"]) == ["2", "4", "6"]
    assert 0 < second["seconds"]["4"] < second["seconds"]["6"]


def test_rates_are_of_the_interval_and_of_the_operations_counted(tmp_path, monkeypatch):
    # A peak for the device at hand, which has none that is published.
    monkeypatch.setitem(chips.PEAKS, "cpu", 1e9)
    report = metric_writer.Progress(Toy(4), Scalars(), Goodput(tmp_path, 0))
    x, w = jnp.ones((8, 16)), jnp.ones((16, 32))
    traced = jax.jit(lambda x, w: x @ w).trace(x, w)
    report.count_operations(None, None, traced)
    report._goodput.stalled += 0.1
    found = report.rates(steps=10, seconds=2.0)
    each = 5 * (2 * 8 * 16 * 32) / jax.device_count()
    assert found["steps_per_sec"] == 5
    assert found["images_per_sec"] == 5 * BATCH
    assert found["codes_per_sec"] == 5 * BATCH * Toy.codes_per_image
    assert found["teraflops_per_device"] == pytest.approx(each / 1e12)
    assert found["mfu"] == pytest.approx(each / 1e9)
    assert found["input_share"] == pytest.approx(0.05)
    # The next interval has its own waiting.
    assert report.rates(steps=1, seconds=1.0)["input_share"] == 0


def test_a_slow_input_shows(tmp_path, monkeypatch):
    written = Scalars()
    monkeypatch.setattr(metric_writer, "SECONDS", 0.0)
    monkeypatch.setattr(metric_writer, "make_writer", lambda _: written)
    data = Batches(act=lambda index: time.sleep(0.2))
    fit(Toy(8), tmp_path, data, checkpoint_every=100, log_eval_every=100)
    shares = [s["input_share"] for s in written.written.values() if "input_share" in s]
    assert sorted(shares)[len(shares) // 2] > 0.8, shares


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
def test_peaks_go_by_what_devices_call_themselves(kind, peak):
    assert chips.peak_flops(kind) == peak
