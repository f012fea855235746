# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sets of images as features, kept for the next time; and all metrics of two sets."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from absl import logging

from rq import distributed
from rq.evaluation import distances, statistics
from rq.evaluation.extractors import Extractor, Found
from rq.evaluation.image_files import ImageSet
from rq.evaluation.manifold import DENSITY_NEIGHBOURS, manifold
from rq.evaluation.statistics import Gaussian, Moments

BATCH = 64
# Of what Inception scores are computed by more than one part of.
SPLITS = 10


class Reference(NamedTuple):
    """What a set of images is known by; parts are None where they are unknown.

    Attributes:
      gaussian: of the features.
      spatial: of the spatial ones.
      pool: the features themselves `[N, F]`, float32, of all or the first of them.
    """

    gaussian: Moments | Gaussian
    spatial: Moments | Gaussian | None
    pool: np.ndarray | None


class Collector:
    """Takes features batch by batch; of spatial ones it keeps the moments alone."""

    def __init__(self, keep: int | None = None):
        """Starts with none.

        Args:
          keep: of so many images the features stay, for neighbourhoods and kernels; of
            the others the moments. None: of all.
        """
        self._keep = keep
        self._pool, self._logits, self._kept = [], [], 0
        self._moments: Moments | None = None
        self._spatial: Moments | None = None

    def add(self, found: Found) -> None:
        """Takes a batch."""
        self._moments = _added(self._moments, found.pool)
        if found.spatial is not None:
            self._spatial = _added(self._spatial, found.spatial)
        room = len(found.pool) if self._keep is None else self._keep - self._kept
        self._pool.append(found.pool[:room])
        self._kept += len(self._pool[-1])
        self._logits.append(found.logits)

    def add_all(self, extractor: Extractor, batches: Iterable[np.ndarray]) -> None:
        """Takes the features of images."""
        for images in batches:
            self.add(extractor(images))

    @property
    def logits(self) -> np.ndarray:
        """`[N, K]`."""
        return np.concatenate(self._logits)

    def reference(self) -> Reference:
        """All of it, to be compared."""
        return Reference(self._moments, self._spatial, np.concatenate(self._pool))


def _added(moments: Moments | None, features: np.ndarray) -> Moments:
    new = statistics.of(features)
    return new if moments is None else statistics.merge(moments, new)


def metrics(
    generated: Reference, real: Reference, label: str = "", logits=None
) -> dict[str, float]:
    """Everything that two sets of images allow to be said.

    Args:
      generated, real: the sets.
      label: of the features, see `rq.evaluation.extractors`; in all names.
      logits: of the generated images, for the Inception score.

    Returns:
      numbers by name: FID and the condition of its covariances, sFID, KID (of subsets
      of 1,000, where there are so many), precision, recall, density, coverage, IS.
    """
    named = f" ({label})" if label else ""
    found = {}
    for name, a, b in (
        ("FID", generated.gaussian, real.gaussian),
        ("sFID", generated.spatial, real.spatial),
    ):
        if a is None or b is None:
            continue
        distance = distances.frechet_distance(
            a.mean, a.covariance, b.mean, b.covariance
        )
        found[f"{name}{named}"] = distance.value
        found[f"{name} condition{named}"] = distance.condition
    if generated.pool is not None and real.pool is not None:
        least = min(len(generated.pool), len(real.pool))
        if least >= distances.SUBSET_SIZE:
            kernel = distances.kernel_distance(generated.pool, real.pool)
            found[f"KID{named}"] = kernel.mean
            found[f"KID deviation{named}"] = kernel.std
        if least > DENSITY_NEIGHBOURS:
            shares = manifold(generated.pool, real.pool)._asdict()
            found |= {f"{name}{named}": value for name, value in shares.items()}
    if logits is not None and len(logits) >= SPLITS:
        score = distances.inception_score(logits, SPLITS)
        found[f"IS{named}"] = score.mean
        found[f"IS deviation{named}"] = score.std
    return found


def cache_folder() -> pathlib.Path:
    """Where statistics of references are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "rq" / "statistics"


def cached(
    extractor: Extractor, source: str, collect, cache=None
) -> tuple[Reference | None, pathlib.Path]:
    """A reference, from the cache where it is there.

    Args:
      extractor: of the features.
      source: hash of what the images are read from.
      collect: function without arguments, to a `Reference`; called where it is not.
      cache: folder; `cache_folder()` where None.

    Returns:
      the reference, in the first process alone, and the file that has it; pytorch-fid
      reads that file too.
    """
    key = hashlib.sha256(f"{source} {extractor.fingerprint}".encode()).hexdigest()
    path = pathlib.Path(cache or cache_folder()) / f"{key[:24]}.npz"
    if distributed.agree(path.exists()):
        if not distributed.is_first():
            return None, path
        logging.info("reference: statistics from %s", path)
        with np.load(path) as file:
            spatial = None
            if "spatial_mu" in file.files:
                parts = (file[f"spatial_{k}"] for k in ("number", "mu", "sigma"))
                spatial = Gaussian(*parts)
            pool = file["pool"]
        return Reference(statistics.load(path), spatial, pool), path
    found = collect()
    if not distributed.is_first():
        return None, path
    path.parent.mkdir(parents=True, exist_ok=True)
    more = {"pool": found.pool, "source": source, "extractor": extractor.fingerprint}
    if found.spatial is not None:
        more |= {
            "spatial_mu": found.spatial.mean,
            "spatial_sigma": found.spatial.covariance,
            "spatial_number": found.spatial.number,
        }
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.npz")
    statistics.save(temporary, found.gaussian, **more)
    temporary.replace(path)
    return found, path


def of_images(images: ImageSet, extractor: Extractor, batch: int = BATCH) -> Collector:
    """All features of a set of images."""
    collector = Collector()
    collector.add_all(extractor, images.batches(batch))
    return collector


def reference(path, extractor: Extractor, channels: int = 3, cache=None) -> Reference:
    """A reference by its path: images, or pytorch-fid's statistics of them.

    Raises:
      DataError: where it is neither.
    """
    path = pathlib.Path(path)
    if path.suffix == ".npz" and path.exists():
        with np.load(path) as file:
            if "mu" in file.files:
                return Reference(statistics.load(path), None, None)
    images = ImageSet(path, channels)
    found, _ = cached(
        extractor,
        images.fingerprint(),
        lambda: of_images(images, extractor).reference(),
        cache,
    )
    return found
