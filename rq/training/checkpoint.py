# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints by Orbax: written in the background, whole or not at all.

A checkpoint is a folder named by its step, with five items, so that sampling reads no
optimizer and a person can read the rest:

    model      params, codebook, ema (moving average of params; empty where off), frozen
               (networks of losses; empty where there are none)
    training   step, optimizer state, random key, adversary (the discriminator)
    config     JSON: the stage, and the config that it was trained with
    data       JSON: position of the data iterator, the same in all processes
    unwritten  JSON: sums of the metrics since they were last written to TensorBoard

and `files.json`, the size of each of their files, and a checksum of small ones: by it a
file that was lost or cut off later is found and named before anything is read. Folders
may be on `gs://`.
"""

from __future__ import annotations

import hashlib
import json
import logging as python_logging
import os
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from orbax.checkpoint import checkpoint_managers

from rq.models.quantizer import Codebook
from rq.parallel import atomic_files, processes
from rq.training.train_state import TrainState

MODEL = ("params", "codebook", "ema", "frozen")
TRAINING = ("step", "opt_state", "key", "adversary")
ITEMS = ("model", "training", "config", "data", "unwritten")
EMPTY = {"sums": {}, "count": 0}  # metrics
FILES, BEST, DAMAGED = "files.json", "best.json", "damaged"
EVALUATED = "evaluated.json"
SMALL = 2**20  # bytes; a larger file is not read again for its checksum

ORBAX = f"{os.sep}orbax{os.sep}"


def _is_worth_telling(record: python_logging.LogRecord) -> bool:
    return record.levelno >= python_logging.WARNING or ORBAX not in record.pathname


# Orbax tells of each checkpoint in some 70 lines, in which progress would drown.
logging.get_absl_logger().addFilter(_is_worth_telling)


class CheckpointError(ValueError):
    """A checkpoint that is missing, or of something else, told in one line."""


class Checkpoints:
    """The checkpoints of one stage in one folder."""

    def __init__(
        self,
        directory,
        stage: str,
        keep: int = 2,
        keep_every: int = 0,
        fallback: bool = False,
    ):
        """Opens a folder, and creates it if need be.

        Args:
          directory: of the checkpoints of this stage alone.
          stage: 'features', 'rqvae' or 'transformer'; those of another are refused.
          keep: the latest so many stay, and the best, if one was told.
          keep_every: those of multiples of so many steps stay too; 0: none.
          fallback: `restore` passes over damaged ones, and renames them.
        """
        self.directory = folder(directory)
        self.stage, self.fallback = stage, fallback
        self._writing = None
        self._manager = _Manager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_Kept(keep, keep_every, self.best),
                # What a killed process left half-written is not a checkpoint.
                cleanup_tmp_directories=True,
                async_options=ocp.options.AsyncOptions(
                    post_finalization_callback=self._list_files
                ),
            ),
        )

    def _list_files(self) -> None:
        """Notes the sizes of what was written, just before that becomes a checkpoint.

        It does so by getting its name or, in a bucket, where it has it from the start,
        by one more file.
        """
        if not processes.is_process_0():
            return
        unnamed = self.directory.glob(f"{self._writing}.orbax-checkpoint-tmp*")
        for path in [*unnamed, self.path(self._writing)]:
            if path.is_dir():
                (path / FILES).write_text(json.dumps(_listing(path)))

    def best(self) -> tuple[int | None, float | None]:
        """Step and figure of the best evaluation; (None, None) where none was told."""
        return best(self.directory)

    def record_if_best(self, step: int, value: float) -> None:
        """Keeps a checkpoint whose `value` is the lowest so far, until a lower one.

        All processes must call it; process 0's value counts.
        """
        _, before = self.best()
        if not processes.broadcast(before is None or value < before):
            return
        self.wait()
        self._record(BEST, {"step": step, "value": value})
        processes.barrier(f"best {self.stage} {step}")

    def evaluated(self) -> int:
        """Step of the latest evaluation, 0 before the first; for all processes."""
        return int(processes.broadcast(evaluated(self.directory)))

    def record_evaluation(self, step: int) -> None:
        """Records that the evaluation at a step has been written."""
        self._record(EVALUATED, {"step": step})

    def _record(self, name: str, content: dict) -> None:
        if processes.is_process_0():
            atomic_files.write_json(self.directory / name, content)

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint; None where there is none."""
        return self._manager.latest_step()

    def path(self, step: int) -> epath.Path:
        """Folder of a checkpoint."""
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

        Returns once the copies are made: the state may then be donated. Waits for a
        write that is still under way. All processes must call it.

        Args:
          step: of the state.
          state: on the devices.
          config_json: the config that it was trained with.
          data_state: position of the data iterator, for JSON.
          metrics: that were not yet written, for JSON.
        """
        state_item, model_item = (
            ocp.args.StandardSave({name: getattr(state, name) for name in names})
            for names in (TRAINING, MODEL)
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
        """Reads a checkpoint onto the devices that the target names.

        Args:
          abstract: shapes, dtypes and shardings, of this mesh, see
            `rq.parallel.sharding.abstract_state`; the checkpoint may come from
            another one.
          step: the latest where None.

        Returns:
          the state, and the data iterator's.

        Raises:
          CheckpointError: where there is none, it is of another stage or model, or
            damaged; with `fallback` and without `step` a damaged one is renamed, and
            the one before it taken.
        """
        if step is None:
            self._leave_damaged()
            step = self.latest_step()
        if step is None:
            self.check_none_is_damaged()
        if step is None or step not in self._manager.all_steps():
            raise _missing(self.directory, self.stage, step)
        _check_files(self.path(step), ITEMS, "--config.checkpoint.fallback=True")
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

    def restore_metrics(self, step: int) -> dict:
        """Returns what `save` was given as `metrics`; none before there were any."""
        if not (self.path(step) / "unwritten").exists():
            return EMPTY
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            return reader.restore(self.path(step) / "unwritten")

    def check_none_is_damaged(self) -> None:
        """Raises CheckpointError where damaged ones were renamed, for `fallback`.

        Without any other left, training would begin anew.
        """
        aside = sorted(self.directory.glob(f"*.{DAMAGED}*"))
        if aside:
            raise CheckpointError(
                f"{aside[-1]} was damaged and there is no checkpoint before it; "
                f"remove {self.directory} to begin anew"
            )

    def _leave_damaged(self) -> None:
        """With `fallback`: renames the newest ones, while damaged, to STEP.damaged."""
        while self.fallback and (step := self.latest_step()) is not None:
            damage = find_damage(self.path(step))
            if damage is None:
                return
            logging.warning("%s; going back to the one before it", damage)
            processes.barrier(f"damage of {self.stage} {step} is known")
            if processes.is_process_0():
                before = len(list(self.directory.glob(f"{step}.{DAMAGED}*")))
                aside = self.directory / f"{step}.{DAMAGED}{before or ''}"
                self.path(step).rename(aside)
            processes.barrier(f"{self.stage} {step} is renamed")
            self._manager.reload()

    def wait(self) -> None:
        """Returns when all that was saved is complete on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets go of the threads."""
        self._manager.close()


class _Manager(ocp.CheckpointManager):
    """Orbax's, which does not ask whether to stop.

    It would ask by the step, where `rq.parallel.preemption` counts for all stages
    together.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class _Kept(checkpoint_managers.PreservationPolicy):
    """The latest, those of every so many steps, and the best."""

    def __init__(self, latest: int, every: int, best):
        self.latest, self.every, self.best = latest, every, best

    def should_preserve(self, checkpoints, *, context):
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self.latest :], self.best()[0]}
        return [s in kept or bool(self.every and s % self.every == 0) for s in steps]


def folder(path) -> epath.Path:
    """An absolute path, of this machine or of a bucket (`gs://`).

    Relative paths fail in the thread that writes, after `save` has returned.
    """
    path = epath.Path(path)
    return path if "://" in os.fspath(path) else path.absolute()


def best(directory) -> tuple[int | None, float | None]:
    """Step and figure of the best evaluation of a stage, or (None, None).

    One whose checkpoint is gone, such as a damaged one that was set aside, is none.
    """
    file = folder(directory) / BEST
    told = json.loads(file.read_text()) if file.exists() else {}
    if not told or not (folder(directory) / str(told["step"])).is_dir():
        return None, None
    return told["step"], told["value"]


def evaluated(directory) -> int:
    """Step of the latest evaluation of a stage, 0 before the first."""
    file = folder(directory) / EVALUATED
    return json.loads(file.read_text())["step"] if file.exists() else 0


def _listing(path: epath.Path) -> dict[str, list]:
    """[bytes, checksum or None] of each file of the items, by its name there."""
    found, folders = {}, [path / item for item in ITEMS]
    while folders:
        for entry in folders.pop().iterdir():
            if entry.is_dir():
                folders.append(entry)
            else:
                size = entry.stat().length
                checksum = zlib.crc32(entry.read_bytes()) if size <= SMALL else None
                found[entry.relative_to(path).as_posix()] = [size, checksum]
    return found


def find_damage(path, items=ITEMS) -> str | None:
    """The first file that is missing, cut off or changed in a checkpoint; or None.

    Of files above `SMALL` it knows the size alone. What has no `files.json` passes.
    """
    path = folder(path)
    if not (path / FILES).exists():
        return None
    try:
        expected = dict(json.loads((path / FILES).read_text()))
    except ValueError:
        return f"{path / FILES} cannot be read: the checkpoint is damaged"
    for name, known in sorted(expected.items()):
        # Checkpoints of before there were checksums have the size alone.
        size, checksum = known if isinstance(known, list) else (known, None)
        if name.split("/")[0] not in items:
            continue
        file = path / name
        if not file.exists():
            return f"{file} is missing: the checkpoint is damaged"
        if (found := file.stat().length) != size:
            return f"{file} has {found} bytes of {size}: the checkpoint is damaged"
        if checksum is not None and zlib.crc32(file.read_bytes()) != checksum:
            return f"{file} has other contents: the checkpoint is damaged"
    return None


def _check_files(path: epath.Path, items, remedy: str) -> None:
    damage = find_damage(path, items)
    if damage:
        raise CheckpointError(f"{damage}; {remedy} takes the one before it")


def latest_step(directory) -> int | None:
    """Step of the newest complete checkpoint in a folder, None where there is none.

    Only reads, so that it may look at what another process is writing.
    """
    found = ocp.path.step.standard_name_format().find_all(str(directory))
    return max((checkpoint.step for checkpoint in found), default=None)


def find_step(directory, step: int | str = "latest") -> int | None:
    """The number of 'latest' or 'best', None where there is none; numbers stay."""
    found = {"latest": latest_step, "best": lambda path: best(path)[0]}
    return found[step](directory) if step in found else step


def identity(directory, step: int | str = "latest") -> str:
    """A hash that no other checkpoint has: of the moment when it was written.

    Copies of it have the same. That of the model would need all of it to be read.
    """
    path = folder(directory) / str(find_step(directory, step))
    return hashlib.sha256((path / "_CHECKPOINT_METADATA").read_bytes()).hexdigest()


def load_model(
    directory,
    stage: str,
    step: int | str = "latest",
    sharding: Any = None,
    dtype: str | None = None,
) -> tuple[dict[str, Any], str]:
    """Reads a model, without its optimizer and without knowing its shapes.

    Args:
      directory: of the checkpoints of this stage.
      stage: 'features', 'rqvae' or 'transformer'.
      step: a number, 'latest', or 'best' of those that were evaluated.
      sharding: of every array, for example `rq.parallel.sharding.replicated(mesh)`, or
        {'params', ...} with one for each part or array; NumPy arrays on the host where
        None.
      dtype: of floating parameters and their average; as they are stored where None.
        The codebook stays float32, as distances do.

    Returns:
      {'params', 'codebook', 'ema', 'frozen'}, the last two {} where they were off; and
      the config it was trained with, as JSON.

    Raises:
      CheckpointError: where there is none, or where it is of another stage.
    """
    directory, number = folder(directory), find_step(directory, step)
    path = directory / str(number)
    if number is None or not path.is_dir():
        raise _missing(directory, stage, step)
    remedy = "another --step, or training with --config.checkpoint.fallback=True,"
    _check_files(path, ("model", "config"), remedy)
    config = _read_config(path, stage)
    handler = ocp.PyTreeCheckpointHandler()
    shapes = handler.metadata(path / "model").tree

    def how(keys, leaf):
        place = sharding
        for key in keys:  # down to the array, or to what is said of all below
            place = place[key.key] if isinstance(place, dict) else place
        cast = dtype and keys[0].key in ("params", "ema") and _is_float(leaf)
        wanted = jnp.dtype(dtype if cast else leaf.dtype)
        if place is None:
            return ocp.RestoreArgs(restore_type=np.ndarray, dtype=wanted)
        return ocp.ArrayRestoreArgs(sharding=place, dtype=wanted)

    restore_args = jax.tree_util.tree_map_with_path(how, shapes)
    with ocp.Checkpointer(handler) as reader:
        model = reader.restore(path / "model", restore_args=restore_args)
    # Without a target Orbax returns plain dictionaries.
    model["codebook"] = {
        name: Codebook(**arrays) for name, arrays in model["codebook"].items()
    }
    return model, config


def _is_float(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _check_model(path: epath.Path, abstract: dict[str, Any]) -> None:
    """Raises CheckpointError on other names or shapes than the target's.

    Orbax would do so too, at the length of pages. Floats become those of the target.
    """
    stored = ocp.PyTreeCheckpointHandler().metadata(path / "model").tree
    there, here = (
        {
            jax.tree_util.keystr(keys, simple=True, separator="/"): leaf
            for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (stored, abstract)
    )

    def told(leaf, absent):
        if leaf is None:
            return absent
        return f"{np.dtype(leaf.dtype).name} {list(leaf.shape)}"

    def alike(a, b):
        same = a.dtype == b.dtype or (_is_float(a) and _is_float(b))
        return same and tuple(a.shape) == tuple(b.shape)

    wrong = [
        f"{name} is {told(a, 'missing')}, not {told(b, 'there')}"
        for name in sorted(there.keys() | here.keys())
        for a, b in [(there.get(name), here.get(name))]
        if a is None or b is None or not alike(a, b)
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"{path} is of another model than this config's: {wrong[0]}{more}"
        )


def _read_config(path: epath.Path, stage: str) -> str:
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        stored = reader.restore(path / "config")
    if stored["stage"] != stage:
        raise CheckpointError(
            f"{path} is a checkpoint of {stored['stage']!r}, not of {stage!r}"
        )
    return json.dumps(stored["config"])


def _missing(directory, stage: str, step: int | str | None) -> CheckpointError:
    what = "no best checkpoint" if step == "best" else "no checkpoint"
    if step not in (None, "latest", "best"):
        what += f" of step {step}"
    return CheckpointError(
        f"{directory} has {what} of {stage!r}; python -m rq.main "
        f"--config=configs/... --workdir={directory.parent} makes one"
    )
