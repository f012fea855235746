# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Converted weights of fixed networks: one `.npz` that names its kind."""

from __future__ import annotations

import io
import json
import math
import pathlib
import tokenize
import zipfile

import flax.traverse_util
import numpy as np

from rq.convert import stored_zip
from rq.convert.names import StateDict
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
      ValueError: if `path` is no .npz.
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
      name: field or flag that has the path, for errors.
      how: the command that makes such a file, for errors.

    Raises:
      DataError: if the file is missing, damaged or something else, or has numbers that
        are not finite.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise DataError(f"{name}={path} does not exist: {how}")
    try:
        flat = _read(path)
        found, about = str(flat.pop("kind")), json.loads(str(flat.pop("about")))
    except zipfile.BadZipFile as error:
        is_archive = zipfile.is_zipfile(path)
        damage = f"is damaged ({stored_zip.one_line(error)})"
        what = damage if is_archive else "holds something else"
        raise DataError(f"{name}={path} {what}: {how}") from None
    except (ValueError, KeyError, tokenize.TokenError, *stored_zip.ERRORS):
        raise DataError(f"{name}={path} holds something else: {how}") from None
    if found != kind:
        raise DataError(f"{name}={path} holds something else: {how}")
    try:
        arrays = StateDict(flat)
        flat = {name: arrays.take(name) for name in flat}
        arrays.finish()
        return about, flax.traverse_util.unflatten_dict(flat, sep="/")
    except (ValueError, TypeError) as error:
        raise DataError(f"{name}={path}: {error}: {how}") from None


def _read(path) -> dict[str, np.ndarray]:
    with stored_zip.open_stored_zip(path) as archive:
        return {
            member.removesuffix(".npy"): _array(archive.read(member))
            for member in archive.namelist()
        }


def _array(data: bytes) -> np.ndarray:
    """The array of an .npy file, no larger than the file whatever its header claims."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("an array of objects")
    array = np.frombuffer(data, dtype, math.prod(shape), file.tell())
    return array.reshape(shape, order="F" if is_fortran else "C")
