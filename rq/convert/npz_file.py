# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Converted weights of fixed networks: one `.npz` that says what it holds."""

from __future__ import annotations

import json
import pathlib
from zipfile import BadZipFile

import flax.traverse_util
import numpy as np

from rq.data import DataError
from rq.parallel import atomic_files


def save(path, kind: str, params, about=None) -> None:
    """Writes what `load` reads.

    Args:
      path: an `.npz`.
      kind: of network.
      params: its parameters.
      about: JSON that makes the module.

    Raises:
      ValueError: where `path` is no .npz.
    """
    if pathlib.Path(path).suffix != ".npz":
        raise ValueError(f"--out={path} must end in .npz")
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    with atomic_files.atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, kind=kind, about=json.dumps(about), **flat)


def load(path, kind: str, name: str, how: str):
    """Reads what `save` wrote: (`about`, parameters).

    Args:
      path, kind: as of `save`.
      name: of the field or flag that has the path, for errors.
      how: such a file is made, for errors.

    Raises:
      DataError: where the file is missing or something else.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise DataError(f"{name}={path} does not exist: {how}")
    try:
        with np.load(path) as file:
            flat = {key: file[key] for key in file.files}
            found, about = str(flat.pop("kind")), json.loads(str(flat.pop("about")))
    except (ValueError, KeyError, OSError, EOFError, AttributeError, BadZipFile):
        found = None
    if found != kind:
        raise DataError(f"{name}={path} holds something else: {how}")
    return about, flax.traverse_util.unflatten_dict(flat, sep="/")
