# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests what is shown of a run: bars and lines, speed, events, Weights & Biases."""

import fcntl
import logging
import os
import pathlib
import pty
import struct
import subprocess
import sys
import termios
import threading
import time

import jax
import jax.numpy as jnp
import pytest
from tensorboard.backend.event_processing import event_accumulator
from toy import BATCH, Batches, Toy, fit

from rq import config as config_lib
from rq import flops, progress
from rq.cli import log_output, run_checks
from rq.config import ConfigError
from rq.training import metric_writer

TESTS = pathlib.Path(__file__).parent


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

    def write_nothing(self, *args):
        pass

    write_images = write_histograms = write_texts = write_hparams = write_nothing

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
    report = metric_writer.Progress(Toy(4), Scalars(), waits, 0, 1)
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

    waits = metric_writer.InputWait()
    report = metric_writer.Progress(Toy(4), Scalars(), waits, 0, 1)
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(3), Device(5), Device(4)])
    found = report.rates(steps=1, seconds=1.0)
    assert found["bytes_in_use"] == 5 and found["peak_bytes_in_use"] == 10


def test_the_time_of_a_part_is_the_sum_over_its_calls(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(metric_writer.time, "monotonic", clock)
    waits = metric_writer.InputWait(clock)
    report = metric_writer.Progress(Toy(4), Scalars(), waits, 0, 1)
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
    monkeypatch.setattr(metric_writer, "make_writer", lambda *_: written)
    data = Batches(act=lambda index: time.sleep(0.2))
    fit(Toy(8), tmp_path, data, checkpoint_every=100, log_eval_every=100, log_every=1)
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


# A training of 30 steps, with the log lines of the program `rq`.
PROGRAM = """
import sys
from rq.cli import log_output
from toy import Toy, fit
log_output.start(debug=False)
fit(Toy(30), sys.argv[1], log_every=10, checkpoint_every=20, log_eval_every=30)
"""


def environment():
    return os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}"}


def on_a_terminal(command, rows=24, columns=90):
    """Runs a command with a terminal of this size; returns what it was sent."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment()
    )
    os.close(theirs)
    sent = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the terminal has no other end any more
            break
        if not part:
            break
        sent += part
    os.close(ours)
    assert process.wait(timeout=120) == 0, sent.decode()
    return sent.decode()


@pytest.mark.slow
@pytest.mark.parametrize("rows, columns", [(24, 90), (0, 0)], ids=["sized", "unsized"])
def test_a_terminal_shows_one_bar_with_lines_above_it(tmp_path, rows, columns):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    sent = on_a_terminal(command, rows, columns)
    last = [line.split("\r")[-1].rstrip() for line in sent.split("\r\n")]
    assert f"rqvae: writing {tmp_path}/rqvae/20" in last
    (bar,) = [line for line in last if "|" in line]
    assert bar.startswith("rqvae 30/30 (100%) |") and "images/s, took" in bar
    assert last.index(bar) > last.index(f"rqvae: writing {tmp_path}/rqvae/30")
    drawn = sent.replace("\n", "\r").split("\r")
    assert any("| loss " in x and " images/s, ETA " in x for x in drawn)
    assert any("| evaluation" in x for x in drawn)
    for noise in ("oneDNN", "InitializeLog", "INFO", "Got images"):
        assert noise not in sent


@pytest.mark.slow
def test_a_file_gets_a_line_every_few_steps(tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    found = subprocess.run(
        command, check=True, capture_output=True, timeout=120, env=environment()
    )
    text = found.stderr.decode()
    assert "\r" not in text and "|" not in text
    lines = [line.split(" ", 2)[2] for line in text.splitlines()]  # without the time
    shown = [line for line in lines if "images/s" in line]
    starts = ["rqvae 10/30 (33%)", "rqvae 20/30 (66%)", "rqvae 30/30 (100%)"]
    assert [line.split(",")[0] for line in shown] == starts
    assert all(", loss " in line for line in shown)
    assert [line.split(", ")[-1].split(" ")[0] for line in shown] == ["ETA"] * 2 + [
        "took"
    ]


def test_only_process_0_shows_progress(monkeypatch, caplog):
    monkeypatch.setattr(progress, "_bars_on_terminals", False)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    for index in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        with (
            caplog.at_level(logging.INFO, logger="absl"),
            progress.Bar(f"process {index}", 2) as bar,
        ):
            bar.update(2)
    assert [record.getMessage()[:9] for record in caplog.records] == ["process 0"]


def test_rate_and_time_left_do_not_count_what_was_before(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    bar = progress.Bar("rqvae", 1000, done=100, size=8)
    clock.now += 500  # compiles
    bar.update(timed=False)
    assert bar.tail() == ""
    for _ in range(99):
        clock.now += 2
        bar.update()
    bar.say("loss 0.5")
    assert bar.head() == "rqvae 200/1,000 (20%)"
    assert bar.tail() == "loss 0.5, 4.00 images/s, ETA 26m40s"
    for _ in range(60):  # faster: the rate is that of the last seconds
        clock.now += 0.5
        bar.update()
    assert bar.rate() == pytest.approx(16, rel=0.05)
    bar.close(finished=False)


@pytest.mark.parametrize(
    "value, text",
    [
        (0, "0"),
        (1234, "1,230"),
        (22.07, "22.1"),
        (0.01234, "0.0123"),
        (9.999, "10.0"),
    ],
)
def test_rates_have_three_digits(value, text):
    assert progress.significant(value) == text


def test_lines_are_of_rq_and_warnings_of_all(monkeypatch, capsys):
    handler = log_output._Lines()

    def line(path, level, text):
        record = logging.LogRecord("absl", level, path, 1, text, (), None)
        handler.handle(record)
        return capsys.readouterr().err[20:]  # without the time

    ours, others = metric_writer.__file__, os.__file__
    assert line(ours, logging.INFO, "rqvae: done") == "rqvae: done\n"
    assert line(others, logging.INFO, "noise") == ""
    assert line(others, logging.WARNING, "few files") == "warning: few files\n"
    assert line(ours, logging.ERROR, "failed") == "error: failed\n"


def tags(folder):
    """Returns the plugin of each tag in a folder of TensorBoard's events."""
    events = event_accumulator.EventAccumulator(str(folder)).Reload()
    return {
        tag: events.SummaryMetadata(tag).plugin_data.plugin_name
        for tag in events.Tags()["tensors"]
    }


def test_tensorboard_has_pictures_code_usage_and_settings(trained):
    found = tags(trained / "tensorboard/rqvae")
    assert found["reconstructions"] == found["code_usage"] == "images"
    assert found["code_usage/depth_1"] == found["code_usage/depth_2"] == "histograms"
    assert found["config"] == "text" and "hparams" in found.values()
    assert tags(trained / "tensorboard/transformer")["samples"] == "images"


@pytest.mark.slow
def test_weights_and_biases_go_on_with_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for steps in (4, 7):
        fit(Toy(steps), tmp_path, log_wandb="rq-test")
    name = (tmp_path / "wandb/rqvae.id").read_text()
    first, second = sorted((tmp_path / "wandb").glob(f"offline-run-*-{name}"))
    for folder in (first, second):
        (records,) = folder.glob("*.wandb")
        content = records.read_bytes()
        for text in (b"images_per_sec", b"eval/total", b"numbers", b"checkpoint.every"):
            assert text in content, text
        assert list((folder / "files/media/images").glob("picture*.png"))


def test_weights_and_biases_without_its_package_is_one_line(monkeypatch):
    config = config_lib.default()
    config.log.wandb = "rq-test"
    monkeypatch.setattr(run_checks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^log.wandb='rq-test' .*rq\[wandb\]"):
        run_checks.check_wandb(config)
    config.log.wandb = ""
    run_checks.check_wandb(config)
