# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Mean and covariance of features, streamed, and in pytorch-fid's file format."""

from __future__ import annotations

import pathlib
import zipfile
from typing import NamedTuple

import numpy as np

from rq.data import DataError

ROWS = 1024  # features whose moments are taken at once
# What NumPy raises on an .npz that is damaged or something else.
DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


class Moments(NamedTuple):
    """Of N features of width F, float64; made by `of`, joined by `merge`.

    Attributes:
      number: N.
      mean: `[F]`.
      scatter: `[F, F]`, the sum of the products of deviations from the mean.
    """

    number: int
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased, over N - 1.

        Raises:
          ValueError: where there are fewer than two.
        """
        if self.number < 2:
            raise ValueError(f"no covariance of {self.number} features")
        return self.scatter / (self.number - 1)


def of(features) -> Moments:
    """Of features `[N, F]`."""
    features = np.asarray(features, np.float64)
    mean = features.mean(axis=0) if len(features) else np.zeros(features.shape[1])
    deviations = features - mean
    return Moments(len(features), mean, deviations.T @ deviations)


def merge(a: Moments, b: Moments) -> Moments:
    """Of both together (Chan et al. 1983): what streams lose no digits by."""
    if not (a.number and b.number):
        return a if a.number else b
    number = a.number + b.number
    apart = b.mean - a.mean
    scatter = a.scatter + b.scatter
    scatter = scatter + np.outer(apart, apart) * (a.number * b.number / number)
    return Moments(number, a.mean + apart * (b.number / number), scatter)


class Stream:
    """Moments of rows that come in batches, of which it keeps no more than `ROWS`."""

    def __init__(self):
        """Starts with none."""
        self._rows, self._number, self._moments = [], 0, None

    def add(self, rows: np.ndarray) -> None:
        """Takes features `[n, F]`."""
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
        """Of all so far; None of none."""
        if self._rows:
            self._take()
        return self._moments


class Gaussian(NamedTuple):
    """What a Frechet distance is of, as stored; `number` is 0 where nobody noted it."""

    number: int
    mean: np.ndarray
    covariance: np.ndarray


def save(path, found: Moments | Gaussian, **about: str) -> None:
    """Writes pytorch-fid's `.npz`: 'mu', 'sigma'; and 'number' and notes."""
    np.savez(path, mu=found.mean, sigma=found.covariance, number=found.number, **about)


def load(path) -> Gaussian:
    """Reads pytorch-fid's `.npz`.

    Raises:
      DataError: where the file is missing or holds something else.
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
    except Exception as error:  # np.load and zipfile raise nearly every kind
        if missing:
            raise DataError(
                f"{path} has no 'mu' and 'sigma' as pytorch-fid writes them"
            ) from None
        line = " ".join(str(error).split())[:200]
        raise DataError(f"{path} is damaged or no .npz: {line}") from None
    return checked(path, Gaussian(number, mean, covariance))


def checked(path, found: Gaussian) -> Gaussian:
    """What was read from a file, if it can be a mean `[F]` and a covariance `[F, F]`.

    Raises:
      DataError: where it can not.
    """
    shapes = found.mean.shape, found.covariance.shape
    if len(shapes[0]) != 1 or shapes[1] != 2 * shapes[0]:
        raise DataError(f"{path} has moments of shapes {shapes}, not [F] and [F, F]")
    if not (np.isfinite(found.mean).all() and np.isfinite(found.covariance).all()):
        raise DataError(f"{path} has moments that are not finite")
    return found
