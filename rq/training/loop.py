# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The train loop, for all stages.

It knows a stage by the interface of `rq.training.stages.stage.Stage`. A run that was
interrupted at any point and started again gives the same weights, bit for bit, as one
that was not: a checkpoint has the state, the random key, the position in the data and
the metrics not yet written, and nothing else is carried from step to step.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
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
    """The training diverged; the message has the step and the last good checkpoint."""


def fit(
    stage,
    data,
    *,
    config,
    workdir,
    mesh,
    config_json: str,
    pictures: Callable[[TrainState], dict[str, np.ndarray]] = lambda state: {},
) -> TrainState:
    """Trains a stage to its last step, from its latest checkpoint if there is one.

    Args:
      stage: what to train.
      data: endless iterator over this process's part of each batch, dicts of arrays
        `[B / processes, ...]`, with `get_state()` (of JSON) and `set_state(state)`. It
        may read ahead, but its state is that after the batch last returned.
      config: the whole config; read for `seed`, `checkpoint`, `log` and `profile`.
      workdir: checkpoints go to WORKDIR/STAGE, events to WORKDIR/tensorboard/STAGE.
      mesh: from `rq.parallel.sharding.make_mesh`.
      config_json: stored in each checkpoint.
      pictures: makes pictures, uint8 `[H, W, 3]` by name, at each evaluation.

    Returns:
      The state after the last step.

    Raises:
      NonFiniteLossError: if a metric or the model is NaN or infinite.
      Preempted: after SIGTERM, when the state is saved.
      CheckpointError: if the checkpoints belong to another model or stage, or the disk
        is full.
    """
    try:
        return _fit(stage, data, config, folder(workdir), mesh, config_json, pictures)
    except Exception as error:
        if not is_disk_full(error):
            raise
        latest = latest_step(folder(workdir) / stage.name)
        good = f"step {latest}" if latest else "none"
        raise CheckpointError(
            f"{workdir}: no space left on the disk; free some and start again (the "
            f"last complete checkpoint of {stage.name}: {good})"
        ) from None


def _fit(stage, data, config, workdir, mesh, config_json, pictures) -> TrainState:
    # CLU's writers import TensorFlow, which takes seconds that sampling can do without.
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
        state, shardings = start(stage, data, checkpoints, config.seed, mesh)
        first = int(state.step)

        def is_evaluated(step):
            return step == stage.steps or step % config.log.eval_every == 0

        missed = first and is_evaluated(first) and checkpoints.evaluated() < first
        if first >= stage.steps and not missed:
            logging.info("%s: all %d steps are done", stage.name, stage.steps)
            return state
        writer = stack.enter_context(
            contextlib.closing(metric_writer.make_writer(events))
        )
        stop = stack.enter_context(StopSignal())
        train_step = compiled(stage.train_step, shardings, mesh)
        metrics = _Metrics(stage, config.log.every, writer, checkpoints)
        if first:
            metrics.set_state(checkpoints.restore_metrics(first))
        input_wait = stack.enter_context(contextlib.closing(metric_writer.InputWait()))
        report = metric_writer.Progress(stage, writer, input_wait)

        def leave(step):
            checkpoints.wait()
            logging.info("%s: SIGTERM; saved step %d", stage.name, step)
            raise Preempted

        def evaluate(step):
            # May take longer than a SIGTERM grants; the state is saved.
            stage.between_batches = lambda: stop.requested() and leave(step)
            with report.timed("evaluation"):
                results, drawn = stage.evaluate(state), pictures(state)
            metric_writer.write_evaluation(writer, step, results, drawn)
            if config.checkpoint.best:
                checkpoints.record_if_best(step, results[stage.criterion])
            checkpoints.record_evaluation(step)

        if missed:  # by a run that was stopped before or during it
            evaluate(first)
        profile = metric_writer.make_profile(config.profile, events, stage.steps)
        logging.info(
            "%s: from step %d to %d, %s parameters, mesh %s; compiling the step",
            stage.name, first, stage.steps, _size(state.params), dict(mesh.shape),
        )  # fmt: skip

        for step in range(first + 1, stage.steps + 1):
            profile(step - 1)
            with input_wait.waiting():
                batch = next(data)
            # Dispatch this step, and only then read the metrics of the one before: the
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
                # Never save or show a state whose own metrics are unread. They are
                # of the parameters before the update, hence the look at those after.
                metrics.read()
                metrics.check_model(step, state)
                # No batch has been drawn since, so the data's position is the state's.
                checkpoints.save(
                    step, state, config_json, data.get_state(), metrics.get_state()
                )
            if stopping:
                leave(step)
            if evaluating:
                evaluate(step)
        profile(stage.steps)
        checkpoints.wait_for_checksums()
    return state


def start(stage, data, checkpoints: Checkpoints, seed: int, mesh):
    """Returns the latest checkpoint's state, or a new one, and its shardings.

    Moves `data` to the checkpoint's position.

    Raises:
      CheckpointError: as `Checkpoints.restore`, and if all of them were damaged.
    """
    key = jax.random.key(seed)
    boxed = jax.eval_shape(stage.init, key)
    shardings = sharding.state_shardings(boxed, mesh)
    if checkpoints.latest_step() is None:
        checkpoints.check_none_is_damaged()
        # Created sharded: a large model never exists whole on one device.
        init = jax.jit(
            lambda key: sharding.unbox(stage.init(key)), out_shardings=shardings
        )
        return init(key), shardings
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
    """Returns the FLOPs that a train step's model needs, without recomputation.

    Call it within `sharding.context`.

    Args:
      stage: whose step it is.
      traced: the step.
      state, batch: what it takes; arrays or abstract.
      shardings: of the state.
    """
    plain = stage.without_recomputation()
    if plain is not stage:
        mesh = jax.tree.leaves(shardings)[0].mesh
        traced = compiled(plain.train_step, shardings, mesh).trace(state, batch)
    return flops.program_flops(traced.jaxpr)


class _Metrics:
    """Reads metrics a step late, raises if they are not finite, writes means.

    Means are over the steps since the last write, which is every `every` steps and at
    the end, whatever restarts were in between.

    Attributes:
      loss: of the step last read.
    """

    def __init__(self, stage, every: int, writer, checkpoints: Checkpoints):
        self.stage, self.every = stage, every
        self.writer, self.checkpoints = writer, checkpoints
        self.unread = None
        self.sums, self.count, self.loss = {}, 0, None

    def get_state(self) -> dict:
        """Returns what the next write needs of the steps before, for JSON."""
        return {"sums": dict(self.sums), "count": self.count}

    def set_state(self, state: dict) -> None:
        """Continues from what `get_state` returned."""
        self.sums, self.count = dict(state["sums"]), state["count"]

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Receives what a step will return, and waits for the step before it."""
        self.read()
        self.unread = step, metrics

    def read(self) -> None:
        """Waits for the metrics that are still unread, and adds them to the means."""
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
        """Raises if parameters, codebook or moving average are not finite."""
        for part in ("params", "codebook", "ema"):
            if not _all_finite(getattr(state, part)):
                self.fail(step, f"{part} is not finite")

    def fail(self, step: int, what: str) -> None:
        """Raises NonFiniteLossError, naming the checkpoint to go back to."""
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


def _size(tree) -> str:
    return f"{sum(leaf.size for leaf in jax.tree.leaves(tree)):,}"
