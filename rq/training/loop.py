# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The train loop, for all stages.

It uses only the interface of `rq.training.stages.stage.Stage`. A run that is resumed
after any interruption gives the same weights, bit for bit, as an uninterrupted one: a
checkpoint holds the state with its random key, the position in the data and the metrics
not yet written, and nothing else is carried from step to step.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

from rq import flops
from rq.parallel import sharding
from rq.parallel.preemption import Preempted, StopSignal
from rq.training.checkpoint import (
    CheckpointError,
    folder,
    is_disk_full,
    latest_step,
)
from rq.training.checkpoint_manager import Checkpoints
from rq.training.train_state import TrainState


class NonFiniteLossError(FloatingPointError):
    """Training diverged; the message names the step and the last good checkpoint."""


def fit(
    stage,
    data,
    *,
    config,
    workdir,
    mesh,
    config_json: str,
    pictures: Callable[[TrainState], dict[str, np.ndarray]] = lambda state: {},
    first_state: Callable[[TrainState], TrainState] = lambda state: state,
) -> TrainState:
    """Trains a stage to its last step, resuming from its latest checkpoint if any.

    Args:
      stage: the `Stage` to train.
      data: endless iterator over this process's rows of each batch, dicts of arrays
        `[B / count, ...]`, with `get_state()` (for JSON) and `set_state(state)`. It may
        read ahead; its state is the position after the last returned batch.
      config: the whole config, of which `seed`, `checkpoint`, `log` and `profile` are
        used.
      workdir: run directory: checkpoints go to WORKDIR/STAGE, events to
        WORKDIR/tensorboard/STAGE.
      mesh: from `rq.parallel.sharding.make_mesh`.
      config_json: stored in each checkpoint.
      pictures: function that returns what to show by name, called after each
        evaluation: pictures, uint8 `[H, W, 3]`, and numbers `[N]` for a histogram.
      first_state: function that changes a new state before the first step; not called
        if training resumes.

    Returns:
      The state after the last step.

    Raises:
      NonFiniteLossError: if a metric or the model is NaN or infinite.
      Preempted: after SIGTERM, when the state is saved.
      CheckpointError: if the checkpoints are of another model or stage, or the disk is
        full.
    """
    try:
        return _fit(
            stage,
            data,
            config,
            folder(workdir),
            mesh,
            config_json,
            pictures,
            first_state,
        )
    except Exception as error:
        if not is_disk_full(error):
            raise
        latest = latest_step(folder(workdir) / stage.name)
        good = f"step {latest}" if latest else "none"
        raise CheckpointError(
            f"{workdir}: no space left on the disk; free some and start again (the "
            f"last complete checkpoint of {stage.name}: {good})"
        ) from None


def _fit(
    stage, data, config, workdir, mesh, config_json, pictures, first_state
) -> TrainState:
    # CLU's writers import TensorFlow, which takes seconds that sampling does not need.
    from rq.training import metric_writer

    events = workdir / "tensorboard" / stage.name
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(
            contextlib.closing(
                Checkpoints(
                    workdir / stage.name,
                    stage.name,
                    config.checkpoint.keep,
                    config.checkpoint.keep_every,
                    config.checkpoint.fallback,
                )
            )
        )
        state, shardings = start(
            stage, data, checkpoints, config.seed, mesh, first_state
        )
        first = int(state.step)

        def is_evaluated(step):
            return step == stage.steps or step % config.log.eval_every == 0

        missed = first and is_evaluated(first) and checkpoints.evaluated() < first
        if first >= stage.steps and not missed:
            logging.info("%s: all %d steps are done", stage.name, stage.steps)
            return state
        writer = stack.enter_context(
            contextlib.closing(
                metric_writer.make_writer(events, config.log.wandb, workdir)
            )
        )
        stop = stack.enter_context(StopSignal())
        train_step = compiled(stage.train_step, shardings, mesh)
        metrics = _Metrics(stage, config.log.every, writer, checkpoints)
        if first:
            metrics.set_state(checkpoints.restore_metrics(first))
        input_wait = stack.enter_context(contextlib.closing(metric_writer.InputWait()))
        report = metric_writer.Progress(
            stage, writer, input_wait, first, config.log.every
        )
        stack.push(lambda kind, *_: report.close(finished=kind is None))
        metric_writer.write_settings(writer, first, config)

        def exit_preempted(step):
            checkpoints.wait()
            logging.info("%s: SIGTERM; saved step %d", stage.name, step)
            raise Preempted

        def evaluate(step):
            def stoppable(batches):
                for batch in batches:
                    if stop.requested():
                        exit_preempted(step)
                    yield batch

            # It may take longer than the time left after SIGTERM; the state is saved.
            stage.watch = stoppable
            with report.timed("evaluation"):
                results, shown = stage.evaluate(state), pictures(state)
            metric_writer.write_evaluation(writer, step, results, shown)
            logging.info(
                "%s: step %d: %s",
                stage.name,
                step,
                metric_writer.evaluation_line(results, stage.criterion, shown),
            )
            if config.checkpoint.best:
                checkpoints.record_if_best(step, results[stage.criterion])
            checkpoints.record_evaluation(step)

        if missed:  # an earlier run was stopped before or during this evaluation
            evaluate(first)
        profile = metric_writer.make_profile(config.profile, events, stage.steps)
        axes = [f"{size} x {axis}" for axis, size in mesh.shape.items() if size > 1]
        logging.info(
            "%s: %s parameters%s; compiling the step",
            stage.name,
            f"{optax.tree.size(state.params):,}",
            f" on a mesh of {', '.join(axes)}" if axes else "",
        )

        for step in range(first + 1, stage.steps + 1):
            profile(step - 1)
            with input_wait.waiting():
                batch = next(data)
            # Dispatch this step before reading the metrics of the previous one: the
            # devices always have work while the host waits.
            with sharding.context(mesh):
                batch = sharding.shard_batch(batch, mesh)
                if step == first + 1:
                    traced = train_step.trace(state, batch)
                    report.step_flops = model_flops(
                        stage, traced, state, batch, shardings
                    )
                state, values = train_step(state, batch)
            input_wait.dispatched(values)
            metrics.add(step, values)
            report(step, metrics.loss)

            evaluating, stopping = is_evaluated(step), stop.requested()
            if evaluating or stopping or step % config.checkpoint.every == 0:
                # Never save or show a state before its metrics are checked. They were
                # computed before the update, so the updated model is checked, too.
                metrics.read()
                metrics.check_model(step, state)
                # No batch was read since this step: the data's position fits the state.
                checkpoints.save(
                    step, state, config_json, data.get_state(), metrics.get_state()
                )
            if stopping:
                exit_preempted(step)
            if evaluating:
                evaluate(step)
        profile(stage.steps)
        checkpoints.wait_for_checksums()
    return state


def start(
    stage,
    data,
    checkpoints: Checkpoints,
    seed: int,
    mesh,
    first_state: Callable[[TrainState], TrainState] = lambda state: state,
):
    """Returns the latest checkpoint's state, or a new one, and its shardings.

    Also sets `data` to the checkpoint's position. `first_state` changes a new state.

    Raises:
      CheckpointError: see `Checkpoints.restore`; also if all checkpoints are damaged.
    """
    key = jax.random.key(seed)
    boxed = jax.eval_shape(stage.init, key)
    shardings = sharding.state_shardings(boxed, mesh)
    if checkpoints.latest_step() is None:
        checkpoints.check_none_is_damaged()
        # Create it sharded: a large model does not fit on one device.
        init = jax.jit(
            lambda key: sharding.unbox(stage.init(key)), out_shardings=shardings
        )
        return first_state(init(key)), shardings
    state, position = checkpoints.restore(sharding.abstract_state(boxed, mesh))
    data.set_state(position)
    logging.info("%s: resumed at step %d", stage.name, state.step)
    return state, shardings


def compiled(train_step, shardings, mesh):
    """Returns the jitted step; the state argument is donated."""
    return jax.jit(
        train_step,
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def model_flops(stage, traced, state, batch, shardings) -> float:
    """Returns the FLOPs of a stage's train step, without recomputation.

    Call it within `sharding.context`.

    Args:
      stage: the `Stage`.
      traced: its traced train step.
      state, batch: arguments of the step, arrays or abstract.
      shardings: shardings of the state.
    """
    plain = stage.without_recomputation()
    if plain is not stage:
        mesh = jax.tree.leaves(shardings)[0].mesh
        traced = compiled(plain.train_step, shardings, mesh).trace(state, batch)
    return flops.program_flops(traced.jaxpr)


class _Metrics:
    """Reads metrics one step late, checks that they are finite, and writes means.

    Means are written every `every` steps and at the end, over all steps since the last
    write, also those before a restart.

    Attributes:
      loss: of the last step read.
    """

    def __init__(self, stage, every: int, writer, checkpoints: Checkpoints):
        self.stage, self.every = stage, every
        self.writer, self.checkpoints = writer, checkpoints
        self.unread: tuple[int, dict[str, jax.Array]] | None = None
        self.sums, self.count = {}, 0
        self.loss: float | None = None

    def get_state(self) -> dict:
        """Returns the sums since the last write, for JSON."""
        return {"sums": dict(self.sums), "count": self.count}

    def set_state(self, state: dict) -> None:
        """Restores the sums that `get_state` returned."""
        self.sums, self.count = dict(state["sums"]), state["count"]

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Reads the previous step's metrics, and keeps this step's for later."""
        self.read()
        self.unread = step, metrics

    def read(self) -> None:
        """Waits for unread metrics, checks them, and adds them to the means."""
        if self.unread is None:
            return
        step, metrics = self.unread
        self.unread = None
        values = {name: float(x) for name, x in jax.device_get(metrics).items()}
        bad = [f"{name} is {x}" for name, x in values.items() if not math.isfinite(x)]
        if bad:
            self.fail(step, ", ".join(bad))
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1
        self.loss = values.get("loss")
        if step % self.every == 0 or step == self.stage.steps:
            means = {name: total / self.count for name, total in self.sums.items()}
            self.writer.write_scalars(step, means)
            self.sums, self.count = {}, 0

    def check_model(self, step: int, state: TrainState) -> None:
        """Raises NonFiniteLossError if the model or its average is not finite."""
        for part in ("params", "codebook", "ema"):
            if not _all_finite(getattr(state, part)):
                self.fail(step, f"{part} is not finite")

    def fail(self, step: int, what: str) -> None:
        """Raises NonFiniteLossError, which names the last good checkpoint."""
        self.checkpoints.wait()
        latest = self.checkpoints.latest_step()
        if latest is None:
            good = "there is no checkpoint yet"
        else:
            good = f"the last good checkpoint is {self.checkpoints.path(latest)}"
        raise NonFiniteLossError(f"{self.stage.name}: {what} at step {step}; {good}")


@jax.jit
def _all_finite(tree) -> jax.Array:
    leaves = jax.tree.leaves(tree)
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in leaves], bool))
