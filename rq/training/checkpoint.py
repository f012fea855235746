# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Finds and reads checkpoints.

A checkpoint is a folder named by its step. It has five items, so that sampling does not
read the optimizer's state, and people can read the JSON:

    model      params, codebook, ema (moving average of params, or empty), frozen
               (networks of losses, or empty)
    training   step, optimizer state, random key, adversary (the discriminator)
    config     JSON: the stage, and the config that it was trained with
    data       JSON: position of the data iterator, the same in all processes
    unwritten  JSON: sums of the metrics since they were last written to TensorBoard

and the sizes and checksums of their files, see `rq.training.checkpoint_files`. Folders
may be on `gs://`.
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

from rq.models.codebook import Codebook
from rq.parallel import processes
from rq.training import checkpoint_files

MODEL = ("params", "codebook", "ema", "frozen")
BEST, EVALUATED = "best.json", "evaluated.json"
DISK_FULL = ("No space left on device", "Disk quota exceeded")
SPECIAL = "[]\\"  # Orbax cannot read checkpoints if the path has one of these
ORBAX = f"{os.sep}orbax{os.sep}"


def _is_logged(record: python_logging.LogRecord) -> bool:
    """Returns whether to log a record: False for most of Orbax's.

    Orbax logs some 70 lines for each checkpoint. Errors of its threads are raised again
    when the write is waited for.
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

    With a relative path Orbax would fail in its thread, after `save` has returned.

    Raises:
      CheckpointError: if the path has characters that Orbax cannot read.
    """
    path = epath.Path(path)
    if bad := set(SPECIAL) & set(os.fspath(path)):
        raise CheckpointError(
            f"{path}: a run directory cannot have {' '.join(sorted(bad))} in its "
            "path; rename it or choose another --workdir"
        )
    return path if "://" in os.fspath(path) else path.absolute()


def best(directory) -> tuple[int | None, float | None]:
    """Returns step and value of a stage's best evaluation, or (None, None).

    It does not count if its checkpoint is gone, for example renamed as damaged.
    """
    file = folder(directory) / BEST
    found = json.loads(file.read_text()) if file.exists() else {}
    if not found or not (folder(directory) / str(found["step"])).is_dir():
        return None, None
    return found["step"], found["value"]


def evaluated(directory) -> int:
    """Returns the step of a stage's latest evaluation, 0 before the first."""
    file = folder(directory) / EVALUATED
    return json.loads(file.read_text())["step"] if file.exists() else 0


def check_files(path: epath.Path, remedy: str, items=None) -> None:
    """Raises CheckpointError if files of some items (all if None) are damaged."""
    damage = checkpoint_files.find_damage(path, items)
    if damage:
        raise CheckpointError(f"{damage}; {remedy} takes the one before it")


def latest_step(directory) -> int | None:
    """Returns the step of the newest complete checkpoint in a folder, or None.

    It is safe to call while another process writes to the folder.
    """
    found = ocp.path.step.standard_name_format().find_all(str(directory))
    return max((checkpoint.step for checkpoint in found), default=None)


def find_step(directory, step: int | str = "latest") -> int | None:
    """Returns the step of 'latest' or 'best', None if there is none; numbers as given.

    All processes must call it; they get process 0's result.
    """
    found = {"latest": latest_step, "best": lambda path: best(path)[0]}
    number: Any = step
    return from_process_0(found[step](directory)) if step in found else number


def from_process_0(step: int | None) -> int | None:
    """Returns process 0's step, in all processes."""
    step = int(processes.broadcast(-1 if step is None else step))
    return None if step < 0 else step


def identity(directory, step: int | str = "latest") -> str:
    """Returns a hash that identifies a checkpoint and its copies.

    It is the hash of Orbax's metadata, with the time of writing: hashing the model
    would mean reading all of it.
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
    """Returns a checkpoint's model and config; needs no shapes, reads no optimizer.

    Args:
      directory: folder of the stage's checkpoints.
      stage: 'features', 'rqvae' or 'transformer'.
      step: a number, 'latest', or 'best' of the evaluated ones.
      sharding: one for all arrays, for example `rq.parallel.sharding.replicated(mesh)`,
        or a nested dict of them by {'params', ...}; NumPy arrays on the host if None.
      dtype: of floating-point parameters and their average; as stored if None. The
        codebook stays float32, which distances need.

    Returns:
      {'params', 'codebook', 'ema', 'frozen'}, of which the last two may be {}; and the
      config that it was trained with, as JSON.

    Raises:
      CheckpointError: if there is no checkpoint, or it is damaged or of another stage.
    """
    directory, number = folder(directory), find_step(directory, step)
    path = directory / str(number)
    if number is None or not path.is_dir():
        raise missing(directory, stage, step)
    remedy = "another --step, or training with --config.checkpoint.fallback=True,"
    check_files(path, remedy, ("model", "config"))
    config = read_config(path, stage)
    handler = ocp.PyTreeCheckpointHandler()
    shapes = handler.metadata(path / "model").tree

    def restore_arg(keys, leaf):
        place = sharding
        for key in keys:  # down to the array, or to a sharding for a whole subtree
            place = place[key.key] if isinstance(place, dict) else place
        cast = dtype and keys[0].key in ("params", "ema") and _is_float(leaf)
        wanted = jnp.dtype(dtype if cast else leaf.dtype)
        if place is None:
            return ocp.RestoreArgs(restore_type=np.ndarray, dtype=wanted)
        return ocp.ArrayRestoreArgs(sharding=place, dtype=wanted)

    restore_args = jax.tree_util.tree_map_with_path(restore_arg, shapes)
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
    """Raises CheckpointError if names or shapes differ from the target's.

    Orbax's own message would fill pages. Floating-point types may differ.
    """
    trees = ocp.PyTreeCheckpointHandler().metadata(path / "model").tree, abstract
    stored, wanted = (
        {
            jax.tree_util.keystr(keys, simple=True, separator="/"): leaf
            for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in trees
    )

    def describe(leaf, absent):
        if leaf is None:
            return absent
        return f"{np.dtype(leaf.dtype).name} {list(leaf.shape)}"

    def compatible(a, b):
        same = a.dtype == b.dtype or (_is_float(a) and _is_float(b))
        return same and tuple(a.shape) == tuple(b.shape)

    wrong = [
        f"{name} is {describe(a, 'missing')}, not {describe(b, 'there')}"
        for name in sorted(stored.keys() | wanted.keys())
        for a, b in [(stored.get(name), wanted.get(name))]
        if a is None or b is None or not compatible(a, b)
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"{path} is of another model than this config's: {wrong[0]}{more}"
        )


def read_config(path: epath.Path, stage: str) -> str:
    """Returns a checkpoint's config as JSON; raises CheckpointError on other stages."""
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        stored = reader.restore(path / "config")
    if stored["stage"] != stage:
        raise CheckpointError(
            f"{path} is a checkpoint of {stored['stage']!r}, not of {stage!r}"
        )
    return json.dumps(stored["config"])


def missing(directory, stage: str, step: int | str | None) -> CheckpointError:
    """Returns the error for a missing checkpoint."""
    what = "no best checkpoint" if step == "best" else "no checkpoint"
    if step not in (None, "latest", "best"):
        what += f" of step {step}"
    return CheckpointError(
        f"{directory} has {what} of {stage!r}; to train one, run: rq train "
        f"--config=NAME --workdir={directory.parent}"
    )
