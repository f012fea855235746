# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: what they hold, and how they are found and read.

A checkpoint is a folder named by its step, with five items, so that sampling reads no
optimizer and a person can read the rest:

    model      params, codebook, ema (moving average of params; empty where off), frozen
               (networks of losses; empty where there are none)
    training   step, optimizer state, random key, adversary (the discriminator)
    config     JSON: the stage, and the config that it was trained with
    data       JSON: position of the data iterator, the same in all processes
    unwritten  JSON: sums of the metrics since they were last written to TensorBoard

Sizes and checksums of their files stand beside them, see
`rq.training.checkpoint_files`. Folders may be on `gs://`.
"""

from __future__ import annotations

import hashlib
import json
import logging as python_logging
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from rq.models.quantizer import Codebook
from rq.parallel import processes
from rq.training import checkpoint_files

MODEL = ("params", "codebook", "ema", "frozen")
ITEMS = ("model", "training", "config", "data", "unwritten")
BEST, EVALUATED = "best.json", "evaluated.json"
DISK_FULL = ("No space left on device", "Disk quota exceeded")
SPECIAL = "[]\\"  # in a path, Orbax writes checkpoints that cannot be read


ORBAX = f"{os.sep}orbax{os.sep}"


def _is_logged(record: python_logging.LogRecord) -> bool:
    """Returns whether a record is not one of Orbax's that only repeat.

    Orbax logs some 70 lines for each checkpoint, in which progress would drown. An
    error of its threads is raised again where the write is waited for.
    """
    if ORBAX not in record.pathname:
        return True
    return record.levelno >= python_logging.WARNING and not record.exc_info


logging.get_absl_logger().addFilter(_is_logged)


class CheckpointError(ValueError):
    """A checkpoint cannot be written or read; the message is one line."""


def is_disk_full(error: BaseException) -> bool:
    """Returns whether an error, or what caused it, is a full disk or quota."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if any(text in str(error) for text in DISK_FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def folder(path) -> epath.Path:
    """Returns an absolute path, local or in a bucket (`gs://`).

    Relative paths fail in the thread that writes, after `save` has returned.

    Raises:
      CheckpointError: if Orbax could not read what it writes there.
    """
    path = epath.Path(path)
    if bad := set(SPECIAL) & set(os.fspath(path)):
        raise CheckpointError(
            f"{path}: a run directory cannot have {' '.join(sorted(bad))} in its "
            "path; rename it or choose another --workdir"
        )
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


def find_damage(path, items=ITEMS) -> str | None:
    """Returns what is wrong with the files of some items of a checkpoint, or None."""
    return checkpoint_files.find_damage(folder(path), items)


def check_files(path: epath.Path, items, remedy: str) -> None:
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
    """Returns the step of 'latest' or 'best', None if there is none; numbers stay.

    All processes must call it, and get process 0's answer.
    """
    found = {"latest": latest_step, "best": lambda path: best(path)[0]}
    return from_process_0(found[step](directory)) if step in found else step


def from_process_0(step: int | None) -> int | None:
    """Returns process 0's step, in all processes."""
    step = int(processes.broadcast(-1 if step is None else step))
    return None if step < 0 else step


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
        raise missing(directory, stage, step)
    remedy = "another --step, or training with --config.checkpoint.fallback=True,"
    check_files(path, ("model", "config"), remedy)
    config = read_config(path, stage)
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


def check_model(path: epath.Path, abstract: dict[str, Any]) -> None:
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


def read_config(path: epath.Path, stage: str) -> str:
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        stored = reader.restore(path / "config")
    if stored["stage"] != stage:
        raise CheckpointError(
            f"{path} is a checkpoint of {stored['stage']!r}, not of {stage!r}"
        )
    return json.dumps(stored["config"])


def missing(directory, stage: str, step: int | str | None) -> CheckpointError:
    what = "no best checkpoint" if step == "best" else "no checkpoint"
    if step not in (None, "latest", "best"):
        what += f" of step {step}"
    return CheckpointError(
        f"{directory} has {what} of {stage!r}; python -m rq.main "
        f"--config=configs/... --workdir={directory.parent} makes one"
    )
