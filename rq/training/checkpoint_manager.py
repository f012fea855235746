# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Writes the checkpoints of a training in the background, and resumes from them.

`rq.training.checkpoint` describes and reads them.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import json
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from rq.config import to_json
from rq.parallel import atomic_files, processes
from rq.training import checkpoint, checkpoint_files
from rq.training.orbax_manager import Manager
from rq.training.train_state import TrainState

TRAINING = ("step", "opt_state", "key", "adversary")
EMPTY = {"sums": {}, "count": 0}  # metrics
DAMAGED = "damaged"  # in the names of checkpoints that `restore` has renamed
PATIENCE = 60.0  # seconds until a shared file system shows process 0's files


class Checkpoints:
    """Writes and restores the checkpoints of one stage, in one folder."""

    def __init__(
        self,
        directory,
        stage: str,
        keep: int = 2,
        keep_every: int = 0,
        fallback: bool = False,
    ):
        """Opens a folder, and creates it if it is missing.

        Args:
          directory: folder of this stage's checkpoints only.
          stage: 'features', 'rqvae' or 'transformer'.
          keep: number of latest checkpoints to keep, besides the best.
          keep_every: also keep steps that are multiples of this; 0 for none.
          fallback: `restore` renames damaged checkpoints and takes the one before.
        """
        self.directory = checkpoint.folder(directory)
        self.stage, self.fallback = stage, fallback
        self._writing: int | None = None  # step of the checkpoint being written
        self._closing = False
        self._checksums = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._manager = Manager(
            self.directory, keep, keep_every, lambda: self.best()[0], self._list_files
        )

    def _list_files(self) -> None:
        """Writes the list of files of the checkpoint that is being written.

        A local checkpoint still has a temporary name. One in a bucket has its final
        name, and is complete once later files are written.
        """
        if self._writing is None or not processes.is_process_0():
            return
        unnamed = self.directory.glob(f"{self._writing}.orbax-checkpoint-tmp*")
        for path in [*unnamed, self.path(self._writing)]:
            if path.is_dir():
                checkpoint_files.write_listing(path)

    def best(self) -> tuple[int | None, float | None]:
        """Returns step and value of the best evaluation, or (None, None)."""
        return checkpoint.best(self.directory)

    def record_if_best(self, step: int, value: float) -> None:
        """Keeps a checkpoint as the best if `value` is the lowest so far.

        All processes must call it; process 0's value counts.
        """
        _, before = self.best()
        if not processes.broadcast(before is None or value < before):
            return
        self.wait()
        self._record(checkpoint.BEST, {"step": step, "value": value})
        processes.barrier(f"best {self.stage} {step}")

    def evaluated(self) -> int:
        """Returns the step of the latest evaluation, 0 before the first."""
        return int(processes.broadcast(checkpoint.evaluated(self.directory)))

    def record_evaluation(self, step: int) -> None:
        """Records that the evaluation of a step is written."""
        self._record(checkpoint.EVALUATED, {"step": step})

    def _record(self, name: str, content: dict) -> None:
        if processes.is_process_0():
            atomic_files.write_json(self.directory / name, content)

    def latest_step(self) -> int | None:
        """Returns the newest complete step that process 0 sees, or None."""
        return checkpoint.from_process_0(self._manager.latest_step())

    def path(self, step: int) -> epath.Path:
        """Returns the folder of a checkpoint."""
        return self.directory / str(step)

    def save(
        self,
        step: int,
        state: TrainState,
        config_json: str,
        data_state: dict,
        metrics: dict | None = None,
    ) -> None:
        """Copies the state off the devices, then writes it in the background.

        Returns when the copies are made; the state may then be donated. Waits for an
        earlier write first. All processes must call it.

        Args:
          step: step of the state.
          state: the state, on the devices.
          config_json: config that it was trained with.
          data_state: position of the data iterator, for JSON.
          metrics: sums of metrics that are not yet written, for JSON.
        """
        state_item, model_item = (
            ocp.args.StandardSave({name: getattr(state, name) for name in names})
            for names in (TRAINING, checkpoint.MODEL)
        )
        config = {"stage": self.stage, "config": json.loads(config_json)}
        self.wait()
        self._writing = step
        logging.info("%s: writing %s", self.stage, self.path(step))
        self._manager.save(
            step,
            args=ocp.args.Composite(
                model=model_item,
                training=state_item,
                config=ocp.args.JsonSave(config),
                data=ocp.args.JsonSave(data_state),
                unwritten=ocp.args.JsonSave(metrics or EMPTY),
            ),
            force=True,
        )

    def restore(
        self, abstract: TrainState, step: int | None = None
    ) -> tuple[TrainState, dict]:
        """Restores a checkpoint, which may have been written from another mesh.

        With `fallback` and without `step`, damaged checkpoints are renamed, and the one
        before is restored.

        Args:
          abstract: shapes, dtypes and shardings on this mesh, from
            `rq.parallel.sharding.abstract_state`.
          step: the latest if None.

        Returns:
          The state, and the position of the data iterator.

        Raises:
          CheckpointError: if there is no checkpoint, or it is damaged or of another
            stage or model.
        """
        if step is None:
            self._rename_damaged()
            step = self.latest_step()
        if step is None:
            self.check_none_is_damaged()
        if step is None or not self._sees(step):
            raise checkpoint.missing(self.directory, self.stage, step)
        checkpoint.check_files(self.path(step), "--config.checkpoint.fallback=True")
        checkpoint.read_config(self.path(step), self.stage)
        training, model = (
            {name: getattr(abstract, name) for name in names}
            for names in (TRAINING, checkpoint.MODEL)
        )
        checkpoint.check_model(self.path(step), model)
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardRestore(model),
                training=ocp.args.StandardRestore(training),
                data=ocp.args.JsonRestore(),
            ),
        )
        return TrainState(**items.model, **items.training), items.data

    def _sees(self, step: int) -> bool:
        """Returns whether a checkpoint exists, after waiting for slow file systems."""
        end = time.monotonic() + (0 if processes.is_process_0() else PATIENCE)
        while not (found := step in self._manager.all_steps()):
            if time.monotonic() >= end:
                break
            time.sleep(1)
            self._manager.reload()
        return found

    def restore_metrics(self, step: int) -> dict:
        """Returns the `metrics` given to `save`; empty in old checkpoints."""
        if not (self.path(step) / "unwritten").exists():
            return EMPTY
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            return reader.restore(self.path(step) / "unwritten")

    def check_none_is_damaged(self) -> None:
        """Raises CheckpointError if damaged checkpoints were renamed by `fallback`.

        Call it if no other checkpoint is left: training would start from scratch.
        """
        aside = sorted(self.directory.glob(f"*.{DAMAGED}*"))
        if aside:
            raise checkpoint.CheckpointError(
                f"{aside[-1]} was damaged and there is no checkpoint before it; "
                f"remove {self.directory} to start from scratch"
            )

    def _rename_damaged(self) -> None:
        """Renames the newest checkpoints while they are damaged, with `fallback`."""
        while self.fallback and (step := self.latest_step()) is not None:
            renamed = processes.run_on_process_0(
                functools.partial(self._rename_if_damaged, step)
            )
            if not processes.broadcast(bool(renamed)):
                return
            self._manager.reload()

    def _rename_if_damaged(self, step: int) -> bool:
        """Renames a damaged checkpoint to STEP.damaged; returns whether it did."""
        damage = checkpoint_files.find_damage(self.path(step))
        if damage is None:
            return False
        logging.warning("%s; going back to the one before it", damage)
        before = len(list(self.directory.glob(f"{step}.{DAMAGED}*")))
        self.path(step).rename(self.directory / f"{step}.{DAMAGED}{before or ''}")
        return True

    def wait(self) -> None:
        """Waits until all saved checkpoints are complete on disk.

        The checksums of large files are still computed in the background.
        """
        self._manager.wait_until_finished()
        if self._writing is not None and processes.is_process_0():
            self._checksums.submit(
                checkpoint_files.write_checksums,
                self.path(self._writing),
                lambda: not self._closing,
            )
        self._writing = None

    def wait_for_checksums(self) -> None:
        """Waits until the checksums of all saved files are written."""
        self.wait()
        self._checksums.shutdown()

    def close(self) -> None:
        """Waits for checkpoints, cancels checksums, and stops the threads."""
        self._manager.close()
        self._closing = True
        self._checksums.shutdown(cancel_futures=True)


def write_trained(run, stage: str, step: int, config, model: Mapping[str, Any]) -> None:
    """Writes the only checkpoint of a stage, as its training would at the last step.

    Args:
      run: the run directory.
      stage: 'rqvae' or 'transformer'.
      step: the last step.
      config: of the run.
      model: 'params' and 'codebook', and 'frozen' if there are frozen networks.
    """
    state = TrainState(
        step=jnp.asarray(step, jnp.int32),
        opt_state={},
        ema={},
        key=jax.random.key(config.seed),
        **model,
    )
    directory = checkpoint.folder(run) / stage
    with contextlib.closing(Checkpoints(directory, stage)) as checkpoints:
        checkpoints.save(step, state, to_json(config), {})
        checkpoints.wait_for_checksums()
        checkpoints.record_evaluation(step)
