# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Resumable chunked computation: results are stored in files of a few hundred rows."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import logging

from rq import progress
from rq.metrics.moments import DAMAGE
from rq.parallel import atomic_files, preemption, processes

PART = 500  # rows in a part: the most that a crash can lose


class Parts:
    """Computes and stores rows in parts, each an atomically written file.

    Attributes:
      number: number of rows in total.
      size: rows in a part; the last may have fewer.
    """

    def __init__(self, folder: pathlib.Path, name: str, number: int, about: str):
        """Initializes; computes nothing.

        Args:
          folder: folder of the files.
          name: prefix of their names.
          number: number of rows in total.
          about: all that the results depend on; parts with another one are recomputed.
        """
        self._folder, self._name, self._about = folder, name, about
        self.number, self.size = number, PART
        starts = range(0, number, PART)
        self._rows = [range(a, min(a + PART, number)) for a in starts]

    def _path(self, rows: range):
        return self._folder / f"{self._name}_part_{rows.start:08d}.npz"

    def _about_rows(self, rows: range) -> str:
        return f"{rows.start} {rows.stop} {self._about}"

    def _is_valid(self, rows: range) -> bool:
        """Returns whether a part exists, undamaged, with these rows and `about`."""
        path = self._path(rows)
        if not path.exists():
            return False
        try:
            with np.load(path) as file:
                arrays = [file[name] for name in file.files]  # checks their checksums
                return bool(arrays) and str(file["about"]) == self._about_rows(rows)
        except DAMAGE:
            logging.warning("%s is damaged: it is recomputed", path)
            return False

    def make(self, function: Callable[[range], dict[str, np.ndarray]]) -> None:
        """Computes missing parts; all processes must call it, process 0 writes."""
        done = np.zeros(len(self._rows), bool)
        if processes.is_process_0():  # only process 0 reads the files
            done[:] = [self._is_valid(rows) for rows in self._rows]
        done = processes.broadcast(done)
        missing = [
            rows for rows, is_done in zip(self._rows, done, strict=True) if not is_done
        ]
        before = self.number - sum(map(len, missing))
        # A log has a line for each part.
        with progress.Bar(self._name, self.number, done=before, every=1) as shown:
            for rows in missing:
                arrays = function(rows)
                if processes.is_process_0():
                    self._write(rows, arrays)
                preemption.exit_on_stop(self._name)
                shown.update(len(rows))
        processes.barrier(f"{self._name} of all parts")

    def _write(self, rows: range, arrays: dict[str, np.ndarray]) -> None:
        path = self._path(rows)
        with (
            atomic_files.atomic_write(path, os.getpid()) as temporary,
            temporary.open("wb") as file,
        ):
            contents: dict[str, Any] = {"about": self._about_rows(rows), **arrays}
            np.savez(file, **contents)

    def each(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields the arrays of all parts, in order, after `make`."""
        for rows in self._rows:
            with np.load(self._path(rows)) as file:
                yield {name: file[name] for name in file.files}

    def remove(self) -> None:
        """Removes all parts, also those with other rows."""
        if processes.is_process_0():
            for path in self._folder.glob(f"{self._name}_part_*"):
                path.unlink(missing_ok=True)
