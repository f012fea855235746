# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a run tells of itself: rates, utilisation, waiting, goodput over restarts."""

import json
import time

import jax
import jax.numpy as jnp
import pytest
from toy import BATCH, Batches, Toy, fit

from rq import progress
from rq.aot import chips
from rq.goodput import Goodput


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
        self.written[step] = scalars


def test_goodput_is_the_share_of_counted_seconds(tmp_path):
    clock = Clock()
    goodput = Goodput(tmp_path, 0, clock)
    clock.work(goodput, 6.0)
    clock.now += 2  # waiting, evaluating, writing
    assert goodput.share() == pytest.approx(6 / 8)


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
    report = progress.Progress(Toy(4), Scalars(), Goodput(tmp_path, 0))
    x, w = jnp.ones((8, 16)), jnp.ones((16, 32))
    traced = jax.jit(lambda x, w: x @ w).trace(x, w)
    report.count_operations(None, None, traced)
    with report.timed("input", wait_jax_async_dispatch=False):
        time.sleep(0.05)
    found = report.rates(steps=10, seconds=2.0)
    each = 5 * (2 * 8 * 16 * 32) / jax.device_count()
    assert found["steps_per_sec"] == 5
    assert found["images_per_sec"] == 5 * BATCH
    assert found["codes_per_sec"] == 5 * BATCH * Toy.codes_per_image
    assert found["teraflops_per_device"] == pytest.approx(each / 1e12)
    assert found["mfu"] == pytest.approx(each / 1e9)
    assert 0.025 <= found["input_share"] < 0.1
    # The next interval has its own waiting.
    assert report.rates(steps=1, seconds=1.0)["input_share"] == 0


def test_a_slow_input_shows(tmp_path, monkeypatch):
    written = Scalars()

    def slow(index):
        time.sleep(0.1)

    monkeypatch.setattr(progress, "SECONDS", 0.0)
    goodput = Goodput(tmp_path, 0)
    report = progress.Progress(Toy(3), written, goodput)
    data = Batches(act=slow)
    for step in range(1, 4):
        with report.timed("input", wait_jax_async_dispatch=False):
            next(data)
        report(step)
    assert written.written[3]["input_share"] > 0.9


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("TPU v5 lite", 197e12),
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
