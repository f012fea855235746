# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests that two processes of two devices do what one of four does."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import together
from program import xla_flags

import rq
from rq.config import ConfigError
from rq.data import digits
from rq.data.stored_codes import CodeSource
from rq.parallel import processes as distributed
from rq.training import checkpoint

ROOT = pathlib.Path(__file__).parent.parent
LIMIT = 400  # seconds
CONFIG = (
    "--config=configs/digits.py:tiny",
    "--config.data.augment=crop_flip",
    "--config.codes.shard_size=700",
    "--config.mesh.fsdp=2",
    # With a small epsilon Adam divides rounding noise by itself where gradients are
    # noise; with a large one the update is linear in the gradient.
    "--config.rqvae.optimizer.eps=1.0",
    "--config.transformer.optimizer.eps=1.0",
    "--config.rqvae.optimizer.learning_rate=0.01",
    "--config.transformer.optimizer.learning_rate=0.1",
)


def start(workdir, data_dir, processes, *flags, environment=os.environ):
    """Starts processes with four devices in total; their output goes to files.

    Without `data_dir` they get no config.
    """
    if data_dir is not None:
        flags = (*CONFIG, f"--config.data.dir={data_dir}", *flags)
    environment = environment | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(4 // processes, optimize=True),
    }
    port, started = together.free_port(), []
    for index in range(processes):
        several = [
            f"--coordinator=127.0.0.1:{port}",
            f"--num_processes={processes}",
            f"--process_id={index}",
        ]
        log = workdir.with_suffix(f".{index}.log")
        with log.open("a") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "rq.main", f"--workdir={workdir}", *flags,
                 *(several if processes > 1 else [])],
                cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        started.append((process, log))
    return started


def finish(started, status=0):
    for process, log in started:
        try:
            found = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            for other, _ in started:
                other.kill()
            raise AssertionError(log.read_text()[-3000:]) from None
        assert found == status, log.read_text()[-3000:]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("several")


@pytest.fixture(scope="module")
def one(place):
    """Returns a run directory trained by one process."""
    finish(start(place / "one", place / "data", 1))
    return place / "one"


@pytest.fixture(scope="module")
def two(place, one):
    """Returns one trained by two processes; process 0 also prepares the data set."""
    finish(start(place / "two", place / "data_of_two", 2))
    return place / "two"


def model(workdir, stage):
    found, _ = checkpoint.load_model(workdir / stage, stage)
    return found


@pytest.mark.slow
def test_two_processes_train_what_one_does(one, two):
    for stage in ("rqvae", "transformer"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5),
            model(two, stage)["params"],
            model(one, stage)["params"],
        )


@pytest.mark.slow
def test_metrics_and_pictures_are_written_once_and_equal(one, two):
    expected = json.loads((one / "samples/evaluation.json").read_text())
    found = json.loads((two / "samples/evaluation.json").read_text())
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
    for name in ("samples.png", "reconstructions.png", "code_usage.png"):
        assert (two / "samples" / name).stat().st_size > 0
    for stage in ("rqvae", "transformer"):
        assert len(list((two / "tensorboard" / stage).glob("events*"))) == 1


@pytest.mark.slow
def test_each_process_encodes_shards_of_its_own(two):
    shards = sorted((two / "codes/train").glob("*.array_record"))
    assert len(shards) == 7  # of 700 images each, 4,500 in total
    assert not list((two / "codes/train").glob("*_tmp"))


@pytest.mark.slow
def test_one_process_resumes_where_two_were_stopped(place, one):
    """SIGTERM to one process stops both after the same step, with exit code 143."""
    workdir = place / "stopped"
    flags = ("--config.rqvae.steps=100000", "--config.stages=rqvae")
    started = start(workdir, place / "data", 2, *flags)
    deadline = time.time() + LIMIT
    while checkpoint.latest_step(workdir / "rqvae") is None:
        assert time.time() < deadline
        time.sleep(0.2)
    started[1][0].send_signal(signal.SIGTERM)
    finish(started, status=143)
    step = checkpoint.latest_step(workdir / "rqvae")
    text = started[0][1].read_text()
    assert f"SIGTERM; saved step {step}" in text
    # One process of four devices resumes.
    again = start(workdir, place / "data", 1, *flags)
    while f"resumed at step {step}" not in again[0][1].read_text():
        assert time.time() < deadline and again[0][0].poll() is None
        time.sleep(0.2)
    again[0][0].send_signal(signal.SIGTERM)
    finish(again, status=143)


FOUR_DEVICES = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": xla_flags(4),
    "PYTHONPATH": str(ROOT),
}


@pytest.mark.parametrize("before", [0, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_sigterm_stops_all_processes_at_the_same_point(tmp_path, before, number):
    """The signal may come before the first step, or in a later stage."""
    started = together.start(
        number, "asks", str(tmp_path), str(before), env=os.environ | FOUR_DEVICES
    )
    deadline = time.time() + 100
    while len(list(tmp_path.glob("ready*"))) < number:
        assert time.time() < deadline, together.ends(started, 0)
        time.sleep(0.05)
    started[-1].send_signal(signal.SIGTERM)
    (tmp_path / "go").touch()
    found = together.ends(started)
    assert [status for status, _ in found] == [143] * number, found
    last = {output.splitlines()[-1] for _, output in found}
    assert len(last) == 1 and "stopped after" in last.pop()


def test_processes_read_their_shards_of_batches_on_any_mesh():
    """If `tensor` spans processes, these read the same rows."""
    found = together.ends(together.start(2, "shards", env=os.environ | FOUR_DEVICES))
    assert [status for status, _ in found] == [0, 0], found
    assert "(8, 1, 1) 1 2 1" in found[1][1] and "(1, 1, 8) 0 1 1" in found[1][1]


@pytest.mark.slow
def test_two_processes_evaluate_and_encode_what_one_does(tmp_path):
    digits.prepare(str(tmp_path / "data"))
    for number in (1, 2):
        environment = os.environ | FOUR_DEVICES | {"XLA_FLAGS": xla_flags(8 // number)}
        environment["PYTHONPATH"] = str(ROOT)
        out = tmp_path / str(number)
        out.mkdir()
        started = together.start(
            number, "measures", str(tmp_path / "data"), str(out), env=environment
        )
        found = together.ends(started, LIMIT)
        assert [status for status, _ in found] == [0] * number, found
    metrics = [json.loads((tmp_path / n / "metrics.json").read_text()) for n in "12"]
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-5, abs=1e-6)
    one, two = (CodeSource(tmp_path / n / "codes", {"rqvae": "x"}) for n in "12")
    assert len(one) == len(two) == 120
    for k in range(120):
        np.testing.assert_array_equal(one[k]["codes"], two[k]["codes"])
        assert one[k]["label"] == two[k]["label"]
        np.testing.assert_allclose(one[k]["features"], two[k]["features"], 1e-4, 1e-5)


def test_each_process_reads_its_own_rows_in_evaluation():
    found = together.ends(together.start(2, "reads", env=os.environ | FOUR_DEVICES))
    assert [status for status, _ in found] == [0, 0], found


@pytest.mark.slow
@pytest.mark.parametrize("is_saved", [False, True])
def test_one_process_takes_the_rqvae_of_source_images(trained, tmp_path, is_saved):
    """All read it, since Orbax waits for all of them; one writes it."""
    given, run = trained, tmp_path / "run"
    if is_saved:
        given = tmp_path / "saved"
        rq.load(trained).save(given)
    env = os.environ | FOUR_DEVICES
    found = together.ends(together.start(2, "takes", str(given), str(run), env=env))
    assert [status for status, _ in found] == [0, 0], found
    assert (run / "source/model.safetensors").exists()


@pytest.mark.parametrize(
    "how, first, second",
    [
        ("all", {1}, 1),
        pytest.param("mistake", {75, -6}, 1, marks=pytest.mark.slow),
        pytest.param("killed", {75, -6}, -9, marks=pytest.mark.slow),
    ],
)
def test_exit_codes_tell_an_error_from_a_lost_process(how, first, second):
    """-6 is JAX's code, if it notices before this program does."""
    started = together.start(2, "fails", how, env=os.environ | FOUR_DEVICES)
    (one, output), (other, more) = together.ends(started)
    assert one in first and other == second, output + more
    assert ("error: no data" in more) == (how == "mistake")


@pytest.mark.slow
def test_two_processes_sample_and_measure_what_one_does(place, one):
    """Includes rejection sampling, with a network that two processes trained."""
    workdir = place / "measured"
    shutil.copytree(one, workdir)
    finish(start(workdir, place / "data", 2, "--config.stages=features"))
    found = []
    for processes in (2, 1):
        for keep in ("1", "0.5"):
            out = place / f"{processes}_{keep}.json"
            flags = (
                "--mode=eval",
                "--num_samples=30",
                f"--keep={keep}",
                f"--out={out}",
            )
            environment = os.environ | {"XDG_CACHE_HOME": str(place / f"c{processes}")}
            finish(start(workdir, None, processes, *flags, environment=environment))
            result = json.loads(out.read_text())
            with np.load(next((workdir / "eval").glob("*/samples.npz"))) as file:
                result["images"] = file["arr_0"]
            found.append(result)
            shutil.rmtree(workdir / "eval")
    for two, alone in zip(found[:2], found[2:], strict=True):
        np.testing.assert_array_equal(two["images"], alone["images"])
        assert two["metrics"] == pytest.approx(alone["metrics"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    "given, message",
    [
        (("host:1", 2, None), "need all of --coordinator"),
        (("host:1", 2, 2), "process_id=2 must be from 0 to 1"),
        (("host", 2, 1), "host is not HOST:PORT"),
    ],
)
def test_incomplete_settings_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        distributed.start(*given)


def test_the_environment_is_read_and_checked(monkeypatch):
    monkeypatch.setenv(distributed.NUMBER, "two")
    with pytest.raises(ConfigError, match="JAX_NUM_PROCESSES=two"):
        distributed.start()
    monkeypatch.delenv(distributed.NUMBER)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")  # Open MPI 5
    with pytest.raises(ConfigError, match="--coordinator=HOST:PORT"):
        distributed.start()
    with pytest.raises(ConfigError, match="found .'host:1', 2, None"):
        distributed.start("host:1")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "2")
    with pytest.raises(ConfigError, match="process_id=2 must be from 0 to 1"):
        distributed.start("host:1")
    monkeypatch.delenv("OMPI_COMM_WORLD_SIZE")
    monkeypatch.setenv(distributed.NUMBER, "1")
    monkeypatch.setenv(distributed.COORDINATOR, "host:1")
    monkeypatch.setenv(distributed.INDEX, "0")
    distributed.start()  # a single process connects to nothing
    assert distributed.is_process_0()
    distributed.barrier("alone")
    with distributed.process_0_first("alone"):
        pass
