# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests that interrupted runs equal others bit for bit, and save nothing bad."""

import contextlib
import json
import logging
import os
import pathlib
import random
import signal
import subprocess
import sys

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util
from toy import BATCH, INPUTS, Batches, Toy, fit

from rq import progress
from rq.parallel import sharding
from rq.training import (
    checkpoint,
    checkpoint_files,
    checkpoint_manager,
    loop,
)

TESTS = pathlib.Path(__file__).parent
STEPS = 7


class Interrupt(Exception):
    """Ends a run like an error in the data."""


def leaves(state):
    """Returns NumPy arrays by path, and the data of random keys."""
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return {
        jax.tree_util.keystr(path): np.asarray(
            jax.random.key_data(x) if is_key(x) else x
        )
        for path, x in jax.tree_util.tree_leaves_with_path(state)
    }


def assert_same(actual, expected):
    actual, expected = leaves(actual), leaves(expected)
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


def restored(stage, workdir, step=None, mesh=None):
    """Returns the state in a checkpoint."""
    mesh = sharding.make_mesh(fsdp=2) if mesh is None else mesh
    checkpoints = checkpoint_manager.Checkpoints(workdir / stage.name, stage.name)
    boxed = jax.eval_shape(stage.init, jax.random.key(0))
    state, _ = checkpoints.restore(sharding.abstract_state(boxed, mesh), step)
    checkpoints.close()
    return state


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Returns the state after `STEPS` steps without interruption."""
    return fit(Toy(STEPS), tmp_path_factory.mktemp("undisturbed"))


def scalars(workdir):
    """Returns the values in the event files, {name: {step: value}}."""
    events = EventAccumulator(
        str(workdir / "tensorboard" / Toy.name), size_guidance={"tensors": 0}
    ).Reload()
    return {
        name: {
            event.step: tensor_util.make_ndarray(event.tensor_proto)
            for event in events.Tensors(name)
        }
        for name in events.Tags()["tensors"]
    }


@pytest.mark.parametrize("at", range(STEPS))
def test_a_run_that_failed_at_any_step_resumes_bit_for_bit(tmp_path, undisturbed, at):
    def act(index):
        if index == at:
            raise Interrupt

    with pytest.raises(Interrupt):
        fit(Toy(STEPS), tmp_path, Batches(act=act))
    saved = checkpoint.latest_step(tmp_path / Toy.name)
    assert saved == (at // 2 * 2 or None)
    drawn = []
    assert_same(fit(Toy(STEPS), tmp_path, Batches(act=drawn.append)), undisturbed)
    assert drawn == list(range(saved or 0, STEPS))


@pytest.mark.parametrize("at", [0, 2, STEPS - 1])
def test_sigterm_saves_the_step_under_way_and_exits_with_143(tmp_path, undisturbed, at):
    def act(index):
        if index == at:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        fit(Toy(STEPS), tmp_path, Batches(act=act), checkpoint_every=100)
    assert isinstance(stopped.value, loop.Preempted) and stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert checkpoint.latest_step(tmp_path / Toy.name) == at + 1
    assert_same(fit(Toy(STEPS), tmp_path), undisturbed)


def test_the_best_evaluated_state_is_kept_even_if_it_is_old(tmp_path):
    class Falling(Toy):  # best at step 4, not a multiple of `checkpoint.every`
        def evaluate(self, state):
            return {"total": abs(int(state.step) - 5.0)}

    kept = {"checkpoint_keep": 1, "checkpoint_best": True}
    fit(Falling(20), tmp_path, checkpoint_every=9, **kept)
    with contextlib.closing(
        checkpoint_manager.Checkpoints(tmp_path / Toy.name, Toy.name)
    ) as kept:
        assert kept.best() == (4, 1.0)
        assert kept.latest_step() == 20
    assert int(restored(Toy(20), tmp_path, step=4).step) == 4
    assert sorted(int(p.name) for p in (tmp_path / Toy.name).glob("[0-9]*")) == [4, 20]


def test_sigterm_in_the_last_evaluation_is_obeyed_too(tmp_path, undisturbed):
    class Slow(Toy):
        def evaluate(self, state):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().evaluate(state)

    with pytest.raises(loop.Preempted):
        fit(Slow(STEPS), tmp_path, log_eval_every=100)
    assert_same(restored(Toy(STEPS), tmp_path), undisturbed)


@pytest.mark.parametrize("at", [4, STEPS])
@pytest.mark.parametrize("how", ["killed", "SIGTERM before", "SIGTERM in it"])
def test_the_next_run_makes_an_evaluation_that_was_interrupted(tmp_path, at, how):
    """The best step and the curves are then those of an uninterrupted run."""

    class Cut(Toy):
        def evaluate(self, state):
            if int(state.step) == at:
                if how == "killed":
                    raise Interrupt
                os.kill(os.getpid(), signal.SIGTERM)
                next(self.watch([{}]))
            return super().evaluate(state)

    def act(index):
        if how == "SIGTERM before" and index == at - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    first, second = Cut(STEPS), Toy(STEPS)
    with pytest.raises(Interrupt if how == "killed" else loop.Preempted):
        fit(first, tmp_path, Batches(act=act), checkpoint_best=True)
    fit(second, tmp_path, checkpoint_best=True)
    assert first.evaluated + second.evaluated == [4, STEPS]
    assert set(scalars(tmp_path)["eval/total"]) == {4, STEPS}
    again = Toy(STEPS)
    fit(again, tmp_path)
    assert not again.evaluated


def test_if_all_checkpoints_are_damaged_training_does_not_start_over(tmp_path):
    """Neither in this run nor in the next, after they were renamed."""
    fit(Toy(2), tmp_path)
    (tmp_path / Toy.name / "2" / checkpoint_files.FILES).write_text("")
    for _ in range(2):
        with pytest.raises(checkpoint.CheckpointError, match="2.damaged was damaged"):
            fit(Toy(2), tmp_path, checkpoint_fallback=True)


def start_process(workdir, **options):
    """Starts `toy.py` in a new process, with the same number of devices."""
    command = [sys.executable, TESTS / "toy.py", workdir, json.dumps(options)]
    path = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_that_were_killed_resume_bit_for_bit(tmp_path):
    """Signals 9 and 15 are sent to a process at a random moment."""
    steps, seed = 40, random.randrange(10**6)
    rng = random.Random(seed)
    runs = {}
    for number, code in enumerate([signal.SIGKILL, signal.SIGTERM]):
        at, delay = rng.randrange(1, steps - 10), rng.uniform(0.001, 0.03)
        options = dict(steps=steps, kill_at=[int(code), at], delay=delay)
        workdir = tmp_path / str(number)
        runs[workdir] = code, start_process(workdir, **options)
    undisturbed = fit(Toy(steps), tmp_path / "undisturbed")
    for workdir, (code, process) in runs.items():
        _, log = process.communicate(timeout=120)
        expected = 143 if code == signal.SIGTERM else -9
        assert process.returncode == expected, f"seed {seed}: {log[-3000:]}"
        latest = checkpoint.latest_step(workdir / Toy.name) or 0
        assert latest < steps, f"seed {seed}"
        assert_same(fit(Toy(steps), workdir), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("number", [6, 20])
def test_kills_at_random_moments_lose_nothing(tmp_path, number):
    """Signal 9 comes during steps, copies and writes; a large state makes them slow.

    Processes may read few batches, and none may finish. No kill may remove an earlier
    checkpoint: the program records the latest one after each.
    """
    steps, outputs, seed = 200, 50_000, random.randrange(10**6)
    rng = random.Random(seed)
    kills = [(rng.randrange(1, 8), rng.uniform(0, 0.05)) for _ in range(number)]
    process = start_process(tmp_path / "a", steps=steps, outputs=outputs, kills=kills)
    noted, log = process.communicate(timeout=400)
    assert process.returncode == 0, f"seed {seed}: {log[-3000:]}"
    latest = json.loads(noted)
    assert len(latest) == len(kills) and latest == sorted(latest), f"seed {seed}"
    reached = checkpoint.latest_step(tmp_path / "a" / Toy.name)
    assert reached is not None and 2 <= reached < steps, f"seed {seed}"
    end = reached + 3
    assert_same(
        fit(Toy(end, outputs), tmp_path / "a"), fit(Toy(end, outputs), tmp_path / "b")
    )


@pytest.mark.slow
def test_an_incomplete_checkpoint_is_ignored(tmp_path):
    """Signal 9 comes while the second checkpoint, of some 50 MB, is written."""
    steps, outputs = 4, 800_000
    process = start_process(tmp_path, steps=steps, outputs=outputs, save_kill=4)
    _, log = process.communicate(timeout=180)
    assert process.returncode == -9, log[-3000:]
    folder = tmp_path / Toy.name
    assert [path.name for path in folder.glob("4*")] != ["4"], "killed too late"
    assert checkpoint.latest_step(folder) == 2
    state = fit(Toy(steps, outputs), tmp_path)
    assert checkpoint.latest_step(folder) == 4
    assert_same(restored(Toy(steps, outputs), tmp_path, 4), state)


@pytest.mark.parametrize("at", [1, 4, 5, STEPS])
def test_a_loss_that_is_nan_stops_and_is_never_saved(tmp_path, at):
    """Also at steps with a checkpoint: 4, and the last."""
    with pytest.raises(loop.NonFiniteLossError) as error:
        fit(Toy(STEPS, nan_at=at), tmp_path)
    good = (at - 1) // 2 * 2
    assert f"rqvae: loss is nan at step {at}" in str(error.value)
    if good:
        path = tmp_path / Toy.name / str(good)
        assert str(error.value).endswith(f"the last good checkpoint is {path}")
        state = restored(Toy(STEPS), tmp_path)
        assert state.step == good
        assert all(np.isfinite(array).all() for array in leaves(state).values())
    else:
        assert "there is no checkpoint yet" in str(error.value)
    assert checkpoint.latest_step(tmp_path / Toy.name) == (good or None)


def test_an_update_that_ruins_the_model_is_never_saved(tmp_path):
    """The loss of step 4 is finite, but not the parameters after it."""
    with pytest.raises(loop.NonFiniteLossError, match="params is not finite at step 4"):
        fit(Toy(STEPS, nan_model_at=4), tmp_path)
    assert checkpoint.latest_step(tmp_path / Toy.name) == 2


def at_step_4(tree, value):
    """A stage whose step 4 returns a metric, or a part of the state, with `value`."""

    class Bad(Toy):
        def train_step(self, state, batch):
            state, metrics = super().train_step(state, batch)
            bad = jnp.where(state.step == 4, value, 0.0)
            if tree == "other":
                return state, metrics | {"other": bad}
            part = jax.tree.map(lambda x: x + bad, getattr(state, tree))
            return state.replace(**{tree: part}), metrics

    return Bad(STEPS)


@pytest.mark.parametrize("value", [jnp.inf, -jnp.inf, jnp.nan])
def test_any_metric_that_is_not_finite_stops_the_run(tmp_path, value):
    message = f"other is {float(value)} at step 4"
    with pytest.raises(loop.NonFiniteLossError, match=message):
        fit(at_step_4("other", value), tmp_path)
    assert checkpoint.latest_step(tmp_path / Toy.name) == 2


@pytest.mark.parametrize("part", ["codebook", "ema"])
def test_a_codebook_or_average_that_is_not_finite_is_never_saved(tmp_path, part):
    with pytest.raises(loop.NonFiniteLossError, match=f"{part} is not finite at step"):
        fit(at_step_4(part, jnp.inf), tmp_path)
    assert checkpoint.latest_step(tmp_path / Toy.name) == 2


def test_checkpoints_of_every_so_many_steps_stay(tmp_path):
    fit(
        Toy(STEPS),
        tmp_path,
        checkpoint_every=1,
        checkpoint_keep=1,
        checkpoint_keep_every=3,
        log_eval_every=100,
    )
    names = [path.name for path in (tmp_path / Toy.name).glob("[0-9]*")]
    assert sorted(names) == ["3", "6", "7"]


@pytest.mark.parametrize("best", [True, False])
def test_the_best_is_recorded_where_the_config_says_so(tmp_path, best):
    fit(Toy(4), tmp_path, checkpoint_best=best)
    step, _ = checkpoint.best(tmp_path / Toy.name)
    assert step == (4 if best else None)


def test_a_finished_run_does_nothing(tmp_path, undisturbed, caplog):
    fit(Toy(STEPS), tmp_path)
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    stage, drawn = Toy(STEPS), []
    with caplog.at_level(logging.INFO, logger="absl"):
        state = fit(stage, tmp_path, Batches(act=drawn.append))
    assert_same(state, undisturbed)
    assert (stage.traced, stage.evaluated, drawn) == (0, [], [])
    assert {
        p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()
    } == files
    assert "rqvae: all 7 steps are done" in caplog.text


def test_the_step_is_compiled_once_and_evaluated_when_due(tmp_path):
    stage = Toy(STEPS)
    fit(stage, tmp_path)
    assert stage.traced == 1
    assert stage.evaluated == [4, 7]


def test_the_state_is_donated_and_keeps_its_shardings(tmp_path):
    mesh, stage = sharding.make_mesh(fsdp=4), Toy(STEPS)
    checkpoints = checkpoint_manager.Checkpoints(tmp_path, stage.name)
    before, shardings = loop.start(stage, Batches(), checkpoints, 0, mesh)
    with sharding.context(mesh):
        batch = sharding.shard_batch(next(Batches()), mesh)
        after, metrics = loop.compiled(stage.train_step, shardings, mesh)(before, batch)
    assert before.params["w"].is_deleted() and before.ema["w"].is_deleted()
    assert jax.tree.map(lambda x: x.sharding, after) == shardings
    assert metrics["loss"].sharding.is_fully_replicated
    assert after.params["w"].sharding.shard_shape((INPUTS, 6)) == (1, 6)


def test_tensorboard_has_means_evaluations_and_pictures(tmp_path):
    """The metric 'step' is the step's number: means are over 1-3, 4-6 and 7."""
    state = fit(Toy(STEPS), tmp_path)
    found = scalars(tmp_path)
    assert found["step"] == {3: 2.0, 6: 5.0, 7: 7.0}
    assert found["loss"].keys() == {3, 6, 7}
    assert found["eval/total"].keys() == {4, 7}
    assert found["eval/total"][7] == pytest.approx(float(state.params["w"].sum()), 1e-5)
    assert found["picture"].keys() == {4, 7}
    assert found["picture"][7][:2].tolist() == [b"7", b"5"]  # width, height


def test_means_are_those_of_a_run_that_was_never_interrupted(tmp_path):
    """Step 4 has a checkpoint, but means are written at 3, 6 and 7."""
    expected = fit(Toy(STEPS), tmp_path / "whole")

    def interrupt(index):
        if index == 5:
            raise Interrupt

    with pytest.raises(Interrupt):
        fit(Toy(STEPS), tmp_path / "twice", Batches(act=interrupt))
    assert_same(fit(Toy(STEPS), tmp_path / "twice"), expected)
    for name in ("step", "loss"):
        assert scalars(tmp_path / "twice")[name] == scalars(tmp_path / "whole")[name]


def test_metrics_are_read_a_step_late(tmp_path, monkeypatch):
    """Each step is dispatched before the previous step's metrics are waited for."""
    events = []
    monkeypatch.setattr(
        loop.jax,
        "device_get",
        lambda x: events.append("read") or jax.tree.map(float, x),
    )
    fit(
        Toy(4),
        tmp_path,
        Batches(act=lambda index: events.append(index)),
        checkpoint_every=100,
        log_eval_every=100,
    )
    assert events == [0, 1, "read", 2, "read", 3, "read", "read"]


def test_progress_shows_stage_step_rate_and_remaining_time(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(progress, "_bars_on_terminals", False)
    with caplog.at_level(logging.INFO, logger="absl"):
        fit(Toy(STEPS), tmp_path, log_every=1)
    lines = [r.getMessage() for r in caplog.records if "images/s" in r.getMessage()]
    assert len(lines) == STEPS - 1  # the first step includes compilation
    for part in ("rqvae 6/7 (85%), loss ", " images/s, ETA "):
        assert part in lines[-2]
    for part in ("rqvae 7/7 (100%), loss ", " images/s, took "):
        assert part in lines[-1]
    assert "% evaluation, " in caplog.records[-1].getMessage()
    assert {"images_per_sec", "codes_per_sec", "input_wait_fraction"} <= set(
        scalars(tmp_path)
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.2, "1m00s"), (61, "1m01s"), (3700, "1h01m"), (90000, "1d01h")],
)
def test_durations_have_two_units(seconds, text):
    assert progress.duration(seconds) == text


def test_a_profile_is_written_for_the_steps_asked_for(tmp_path):
    fit(Toy(4), tmp_path, profile_start=2, profile_steps=100)
    assert list((tmp_path / "tensorboard").rglob("*.xplane.pb"))


@pytest.mark.parametrize("outputs", [6, 5])
def test_a_run_resumes_on_another_mesh(tmp_path, outputs):
    """Results differ by the order of sums only; 5 outputs cannot be sharded."""
    meshes = [
        sharding.make_mesh(fsdp=4),
        sharding.make_mesh(fsdp=2, tensor=2),
        sharding.make_mesh(devices=jax.devices()[:1]),
    ]
    for steps, mesh in zip([2, 4, 6], meshes, strict=True):
        state = fit(Toy(steps, outputs), tmp_path, mesh=mesh)
        assert state.params["w"].sharding.mesh == mesh
    expected = fit(Toy(6, outputs), tmp_path / "one_mesh")
    for name, array in leaves(expected).items():
        np.testing.assert_allclose(
            leaves(state)[name], array, rtol=1e-4, atol=1e-5, err_msg=name
        )


class Rows:
    """A random access source for Grain."""

    def __len__(self):
        return 50

    def __getitem__(self, index):
        rng = np.random.default_rng(int(index))
        return {
            "x": rng.normal(size=INPUTS).astype(np.float32),
            "y": rng.normal(size=6).astype(np.float32),
        }


def grain_batches():
    """Yields shuffled batches, which threads read ahead."""
    data = grain.MapDataset.source(Rows()).seed(0).shuffle().repeat()
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    return iter(data.batch(BATCH, drop_remainder=True).to_iter_dataset(options))


def test_a_grain_iterator_that_reads_ahead_resumes_bit_for_bit(tmp_path):
    """Saves the position of batches consumed, not of those read ahead."""
    expected = fit(Toy(STEPS), tmp_path / "undisturbed", grain_batches())

    class Failing:
        def __init__(self, data):
            self.data, self.get_state = data, data.get_state

        def __next__(self):
            if self.data.get_state()["next_index"] == 5:
                raise Interrupt
            return next(self.data)

    with pytest.raises(Interrupt):
        fit(Toy(STEPS), tmp_path, Failing(grain_batches()))
    stored = json.loads((tmp_path / Toy.name / "4" / "data" / "metadata").read_text())
    assert stored == {"next_index": 4}
    assert_same(fit(Toy(STEPS), tmp_path, grain_batches()), expected)
