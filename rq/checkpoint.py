# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints by Orbax: written in the background, whole or not at all.

A checkpoint is a folder named by its step, with four items, so that sampling reads no
optimizer and a person can read the rest:

    model      params, codebook, ema (moving average of params; empty where off), frozen
               (networks of losses; empty where there are none)
    training   step, optimizer state, random key, adversary (the discriminator)
    config     JSON: the stage, and the config that it was trained with
    data       JSON: position of the data iterator, the same in all processes
"""

from __future__ import annotations

import json
import logging as python_logging
import os
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from rq.models.quantizer import Codebook
from rq.state import TrainState

MODEL = ("params", "codebook", "ema", "frozen")
TRAINING = ("step", "opt_state", "key", "adversary")


ORBAX = f"{os.sep}orbax{os.sep}"


def _is_worth_telling(record: python_logging.LogRecord) -> bool:
    return record.levelno >= python_logging.WARNING or ORBAX not in record.pathname


# Orbax tells of each checkpoint in some 70 lines, in which progress would drown.
logging.get_absl_logger().addFilter(_is_worth_telling)


class CheckpointError(ValueError):
    """A checkpoint that is missing, or of something else, told in one line."""


class Checkpoints:
    """The checkpoints of one stage in one folder."""

    def __init__(self, directory, stage: str, keep: int = 2):
        """Opens a folder, and creates it if need be.

        Args:
          directory: of the checkpoints of this stage alone.
          stage: 'features', 'rqvae' or 'transformer'; those of another are refused.
          keep: the latest so many stay.
        """
        # Relative paths fail in the thread that writes, after `save` has returned.
        self.directory = pathlib.Path(directory).absolute()
        self.stage = stage
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                # What a killed process left half-written is not a checkpoint.
                cleanup_tmp_directories=True,
            ),
        )

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint; None where there is none."""
        return self._manager.latest_step()

    def path(self, step: int) -> pathlib.Path:
        """Folder of a checkpoint."""
        return self.directory / str(step)

    def save(
        self, step: int, state: TrainState, config_json: str, data_state: dict
    ) -> None:
        """Copies the state off the devices, then writes it in the background.

        Returns once the copies are made: the state may then be donated. Waits for a
        write that is still under way. All processes must call it.
        """
        state_item, model_item = (
            ocp.args.StandardSave({name: getattr(state, name) for name in names})
            for names in (TRAINING, MODEL)
        )
        config = {"stage": self.stage, "config": json.loads(config_json)}
        logging.info("%s: writing %s", self.stage, self.path(step))
        self._manager.save(
            step,
            args=ocp.args.Composite(
                model=model_item,
                training=state_item,
                config=ocp.args.JsonSave(config),
                data=ocp.args.JsonSave(data_state),
            ),
            force=True,
        )

    def restore(
        self, abstract: TrainState, step: int | None = None
    ) -> tuple[TrainState, dict]:
        """Reads a checkpoint onto the devices that the target names.

        Args:
          abstract: shapes, dtypes and shardings (`rq.sharding.abstract_state`), of this
            mesh; the checkpoint may come from another one.
          step: the latest where None.

        Returns:
          the state, and the data iterator's.

        Raises:
          CheckpointError: where there is none, or it is of another stage or model.
        """
        step = self.latest_step() if step is None else step
        if step is None or step not in self._manager.all_steps():
            raise _missing(self.directory, self.stage, step)
        _read_config(self.path(step), self.stage)
        training, model = (
            {name: getattr(abstract, name) for name in names}
            for names in (TRAINING, MODEL)
        )
        _check_model(self.path(step), model)
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardRestore(model),
                training=ocp.args.StandardRestore(training),
                data=ocp.args.JsonRestore(),
            ),
        )
        return TrainState(**items.model, **items.training), items.data

    def reached_preemption(self, step: int) -> bool:
        """Whether all processes have agreed to stop after this step.

        Only where `jax.distributed` runs, whose service has heard a SIGTERM somewhere.
        """
        return self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Returns when all that was saved is complete on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets go of the threads."""
        self._manager.close()


def latest_step(directory) -> int | None:
    """Step of the newest complete checkpoint in a folder, None where there is none.

    Only reads, so that it may look at what another process is writing.
    """
    found = ocp.path.step.standard_name_format().find_all(str(directory))
    return max((checkpoint.step for checkpoint in found), default=None)


def load_model(
    directory,
    stage: str,
    step: int | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> tuple[dict[str, Any], str]:
    """Reads a model, without its optimizer and without knowing its shapes.

    Args:
      directory: of the checkpoints of this stage.
      stage: 'features', 'rqvae' or 'transformer'.
      step: the latest where None.
      sharding: of every array, for example `rq.sharding.replicated(mesh)`; NumPy arrays
        on the host where None.

    Returns:
      {'params', 'codebook', 'ema', 'frozen'}, the last two {} where they were off; and
      the config it was trained with, as JSON.

    Raises:
      CheckpointError: where there is none, or where it is of another stage.
    """
    directory = pathlib.Path(directory).absolute()
    newest = latest_step(directory) if step is None else step
    if newest is None or not (directory / str(newest)).is_dir():
        raise _missing(directory, stage, step)
    path = directory / str(newest)
    config = _read_config(path, stage)
    if sharding is None:
        how = ocp.RestoreArgs(restore_type=np.ndarray)
    else:
        how = ocp.ArrayRestoreArgs(sharding=sharding)
    handler = ocp.PyTreeCheckpointHandler()
    shapes = handler.metadata(path / "model").tree
    with ocp.Checkpointer(handler) as reader:
        model = reader.restore(
            path / "model", restore_args=jax.tree.map(lambda _: how, shapes)
        )
    # Without a target Orbax returns plain dictionaries.
    model["codebook"] = {
        name: Codebook(**arrays) for name, arrays in model["codebook"].items()
    }
    return model, config


def _check_model(path: pathlib.Path, abstract: dict[str, Any]) -> None:
    """Raises CheckpointError on other names, shapes or dtypes than the target's.

    Orbax would do so too, at the length of pages.
    """
    stored = ocp.PyTreeCheckpointHandler().metadata(path / "model").tree
    there, here = (
        {
            jax.tree_util.keystr(keys, simple=True, separator="/"): (
                f"{np.dtype(leaf.dtype).name} {list(leaf.shape)}"
            )
            for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (stored, abstract)
    )
    wrong = [
        f"{name} is {there.get(name, 'missing')}, not {here.get(name, 'there')}"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"{path} is of another model than this config's: {wrong[0]}{more}"
        )


def _read_config(path: pathlib.Path, stage: str) -> str:
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        stored = reader.restore(path / "config")
    if stored["stage"] != stage:
        raise CheckpointError(
            f"{path} is a checkpoint of {stored['stage']!r}, not of {stage!r}"
        )
    return json.dumps(stored["config"])


def _missing(directory, stage: str, step: int | None) -> CheckpointError:
    what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
    return CheckpointError(
        f"{directory} has {what} of {stage!r}; python -m rq.main "
        f"--config=configs/... --workdir={directory.parent} makes one"
    )
