# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Computes mean and covariance of features; reads and writes pytorch-fid's files."""

from __future__ import annotations

import pathlib
import zipfile
from typing import Any, NamedTuple

import numpy as np

from rq.data import DataError

ROWS = 1024  # features that `Stream` buffers
# Exceptions that NumPy raises on a damaged .npz or another kind of file.
DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


class Moments(NamedTuple):
    """The float64 moments of N features of width F; see `of` and `merge`.

    Attributes:
      number: number of features N.
      mean: `[F]`.
      scatter: `[F, F]`, sum of the outer products of deviations from the mean.
    """

    number: int
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """Returns the unbiased covariance `[F, F]`, divided by N - 1.

        Raises:
          ValueError: if there are fewer than two features.
        """
        if self.number < 2:
            raise ValueError(f"no covariance of {self.number} features")
        return self.scatter / (self.number - 1)


def of(features) -> Moments:
    """Returns the moments of features `[N, F]`."""
    features = np.asarray(features, np.float64)
    mean = features.mean(axis=0) if len(features) else np.zeros(features.shape[1])
    deviations = features - mean
    return Moments(len(features), mean, deviations.T @ deviations)


def merge(a: Moments, b: Moments) -> Moments:
    """Returns the moments of both sets together, stably (Chan et al. 1983)."""
    if not (a.number and b.number):
        return a if a.number else b
    number = a.number + b.number
    apart = b.mean - a.mean
    scatter = a.scatter + b.scatter
    scatter = scatter + np.outer(apart, apart) * (a.number * b.number / number)
    return Moments(number, a.mean + apart * (b.number / number), scatter)


class Stream:
    """Accumulates moments of batches of features; buffers about `ROWS` rows."""

    def __init__(self):
        """Starts without features."""
        self._rows, self._number, self._moments = [], 0, None

    def add(self, rows: np.ndarray) -> None:
        """Adds features `[n, F]`."""
        self._rows.append(rows)
        self._number += len(rows)
        if self._number >= ROWS:
            self._take()

    def _take(self) -> None:
        new = of(np.concatenate(self._rows))
        before = self._moments
        self._moments = new if before is None else merge(before, new)
        self._rows, self._number = [], 0

    def moments(self) -> Moments | None:
        """Returns the moments of all features so far, or None without any."""
        if self._rows:
            self._take()
        return self._moments


class Gaussian(NamedTuple):
    """Mean `[F]` and covariance `[F, F]` from a file; `number` is 0 if unknown."""

    number: int
    mean: np.ndarray
    covariance: np.ndarray


def save(path, found: Moments | Gaussian, **about: str) -> None:
    """Writes pytorch-fid's `.npz` ('mu', 'sigma'), 'number' and the strings `about`."""
    texts: dict[str, Any] = about
    np.savez(path, mu=found.mean, sigma=found.covariance, number=found.number, **texts)


def load(path) -> Gaussian:
    """Reads pytorch-fid's `.npz`.

    Raises:
      DataError: if the file is missing, damaged or of another kind.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist")
    missing = None
    try:
        with np.load(path) as file:
            missing = {"mu", "sigma"} - set(file.files)
            mean, covariance = (np.asarray(file[k], float) for k in ("mu", "sigma"))
            number = int(file["number"]) if "number" in file.files else 0
    except Exception as error:  # np.load and zipfile raise many kinds
        if missing:
            raise DataError(
                f"{path} has no 'mu' and 'sigma' in the format of pytorch-fid"
            ) from None
        line = " ".join(str(error).split())[:200]
        raise DataError(f"{path} is damaged or not an .npz: {line}") from None
    return checked(path, Gaussian(number, mean, covariance))


def checked(path, found: Gaussian) -> Gaussian:
    """Returns `found` if it is a finite mean `[F]` and covariance `[F, F]`.

    Raises:
      DataError: otherwise.
    """
    shapes = found.mean.shape, found.covariance.shape
    if len(shapes[0]) != 1 or shapes[1] != 2 * shapes[0]:
        raise DataError(f"{path} has moments of shapes {shapes}, not [F] and [F, F]")
    if not (np.isfinite(found.mean).all() and np.isfinite(found.covariance).all()):
        raise DataError(f"{path} has moments that are not finite")
    return found
