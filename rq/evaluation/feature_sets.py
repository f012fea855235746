# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Features of sets of images, cached on disk, and the metrics of two sets."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from absl import logging

from rq.data import DataError, contents
from rq.evaluation.extractors import Extractor, Found
from rq.evaluation.image_files import ImageSet
from rq.metrics import distances, moments
from rq.metrics.manifold import DENSITY_NEIGHBOURS, manifold
from rq.metrics.moments import Gaussian, Moments
from rq.parallel import atomic_files, processes

BATCH = 64  # images at once through a network
SPLITS = 10  # parts of the images, of each of which the Inception score is one
SHUFFLE_SEED = 2020  # of their order, as torch-fidelity has it
# Of a larger reference so many images, drawn at random, stand for all in what needs the
# features themselves: neighbourhoods and kernels.
POOL = 50_000
# Part of the names of cached references: raise it when what is stored changes.
CACHE_VERSION = 2


class FeatureSet(NamedTuple):
    """Features of a set of images, and their moments; None where unknown.

    Attributes:
      gaussian: of the features.
      spatial: of the spatial ones.
      pool: the features themselves `[N, F]`, float32, of all images or of some.
      logits: `[N, K]`, float32.
    """

    gaussian: Moments | Gaussian
    spatial: Moments | Gaussian | None = None
    pool: np.ndarray | None = None
    logits: np.ndarray | None = None


def kept(number: int) -> np.ndarray:
    """Returns the indices of the images whose features are kept, in order."""
    if number <= POOL:
        return np.arange(number)
    return np.sort(np.random.default_rng(0).permutation(number)[:POOL])


class Collector:
    """Collects features batch by batch, and keeps no more of them than needed."""

    def __init__(self, number: int | None = None, logits: bool = True):
        """Starts with none.

        Args:
          number: of images in all; of more than `POOL` only some features stay. None:
            those of all.
          logits: whether they stay.
        """
        self._kept = None
        if number is not None and number > POOL:
            self._kept = np.zeros(number, bool)
            self._kept[kept(number)] = True
        self._wants_logits = logits
        self._seen, self._pool, self._logits = 0, [], []
        self._gaussian, self._spatial = moments.Stream(), moments.Stream()

    def add(self, found: Found) -> None:
        """Adds a batch."""
        number = len(found.pool)
        self._gaussian.add(found.pool)
        if found.spatial is not None:
            self._spatial.add(found.spatial)
        if self._wants_logits and found.logits is not None:
            self._logits.append(found.logits)
        pool = found.pool
        if self._kept is not None:
            pool = pool[self._kept[self._seen : self._seen + number]]
        if len(pool):
            self._pool.append(pool)
        self._seen += number

    def add_all(self, batches: Iterable[Found]) -> None:
        """Takes all batches."""
        for found in batches:
            self.add(found)

    def result(self) -> FeatureSet:
        """All that was taken, at least one batch."""
        return FeatureSet(
            self._gaussian.moments(),
            self._spatial.moments(),
            np.concatenate(self._pool),
            np.concatenate(self._logits) if self._logits else None,
        )


def check(number: int, real: FeatureSet, extractor: Extractor) -> None:
    """Checks that metrics can be computed, before anything is drawn or extracted.

    Args:
      number: of generated images.
      real: what they are to be compared with.
      extractor: of the generated images' features.

    Raises:
      DataError: on too few images, or a reference of other features.
    """
    if number < 2:
        raise DataError(f"metrics need two images or more, not {number}")
    if len(real.gaussian.mean) != extractor.width:
        raise DataError(
            f"the reference has {len(real.gaussian.mean)} features, {extractor.name} "
            f"{extractor.width}: they are of another network"
        )


def metrics(made: FeatureSet, real: FeatureSet, label: str = "") -> dict[str, float]:
    """Returns all metrics that two sets of images allow.

    Args:
      made: the generated images; of their logits is the Inception score.
      real: the reference.
      label: of the features, see `rq.evaluation.extractors`; in all names.

    Returns:
      numbers by name: FID and the condition of its covariances (None where infinite),
      sFID, KID (of subsets of 1,000, where there are so many), precision, recall,
      density, coverage, IS.
    """
    named = f" ({label})" if label else ""
    found = {}
    for name, a, b in (
        ("FID", made.gaussian, real.gaussian),
        ("sFID", made.spatial, real.spatial),
    ):
        if a is None or b is None:
            continue
        distance = distances.frechet_distance(
            a.mean, a.covariance, b.mean, b.covariance
        )
        finite = np.isfinite(distance.condition)
        found[f"{name}{named}"] = distance.value
        found[f"{name} condition{named}"] = distance.condition if finite else None
    if made.pool is not None and real.pool is not None:
        least = min(len(made.pool), len(real.pool))
        if least >= distances.SUBSET_SIZE:
            kernel = distances.kernel_distance(made.pool, real.pool)
            found[f"KID{named}"] = kernel.mean
            found[f"KID deviation{named}"] = kernel.std
        if least > DENSITY_NEIGHBOURS:
            shares = manifold(made.pool, real.pool)._asdict()
            found |= {f"{name}{named}": value for name, value in shares.items()}
    if made.logits is not None and len(made.logits) >= SPLITS:
        # Parts must not be of some classes each, as those of sorted images are.
        order = np.random.RandomState(SHUFFLE_SEED).permutation(len(made.logits))
        score = distances.inception_score(made.logits[order], SPLITS)
        found[f"IS{named}"] = score.mean
        found[f"IS deviation{named}"] = score.std
    return found


# On disk: pytorch-fid's `.npz`, 'mu' and 'sigma', with 'mu_s' and 'sigma_s' of sFID as
# ADM's reference files have them; 'number', 'pool' and 'logits' of our own.


def save(path, found: FeatureSet, **notes: str) -> None:
    """Writes an `.npz` atomically."""
    arrays = dict(notes)
    if found.spatial is not None:
        arrays |= {"mu_s": found.spatial.mean, "sigma_s": found.spatial.covariance}
    for name in ("pool", "logits"):
        if getattr(found, name) is not None:
            arrays[name] = getattr(found, name)
    with (
        atomic_files.atomic_write(path, os.getpid()) as temporary,
        temporary.open("wb") as file,
    ):
        moments.save(file, found.gaussian, **arrays)


def load(path) -> FeatureSet:
    """Reads what `save` wrote, pytorch-fid's statistics, or ADM's without its images.

    Raises:
      DataError: where the file is missing or something else.
    """
    gaussian = moments.load(path)
    with np.load(path) as file:
        spatial = None
        if {"mu_s", "sigma_s"} <= set(file.files):
            parts = (file[k].astype(np.float64) for k in ("mu_s", "sigma_s"))
            spatial = moments.checked(path, Gaussian(gaussian.number, *parts))
        pool, logits = (
            file[name] if name in file.files else None for name in ("pool", "logits")
        )
    return FeatureSet(gaussian, spatial, pool, logits)


def load_if_whole(path, about: str | None = None) -> FeatureSet | None:
    """Returns what `load` does; None if missing, damaged, or with another `about`."""
    if not pathlib.Path(path).exists():
        return None
    try:
        with np.load(path) as file:
            if about is not None and str(file["about"]) != about:
                return None
        return load(path)
    except moments.DAMAGE as error:
        logging.warning("%s is damaged (%s): made anew", path, error)
        return None


def cached(
    extractor: Extractor, source: str, collect: Callable[[], FeatureSet], cache=None
) -> FeatureSet | None:
    """Returns a reference from the cache, or collects it; on process 0 alone.

    Args:
      extractor: of the features.
      source: hash of what the images are read from, and how.
      collect: to it where it is not; all processes call it.
      cache: folder of what `save` writes; ~/.cache/rq/statistics where None.
    """
    about = f"{source} {extractor.fingerprint} {CACHE_VERSION}"
    key = hashlib.sha256(about.encode()).hexdigest()
    folder = pathlib.Path(cache or contents.cache_folder() / "statistics")
    path = folder / f"{key[:24]}.npz"
    known = processes.run_on_process_0(lambda: load_if_whole(path))
    if processes.broadcast(known is not None):
        logging.info("reference: statistics from %s", path)
        return known
    found = collect()

    def keep():
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, found, source=source, extractor=extractor.fingerprint)
        return found

    return processes.run_on_process_0(keep)


def of_images(
    images: ImageSet, extractor: Extractor, logits: bool = True, batch: int = BATCH
) -> FeatureSet:
    """Returns all features of a set of images.

    Raises:
      DataError: where there are fewer than two, of which nothing can be said.
    """
    if images.number < 2:
        raise DataError(f"{images.path} has one image; metrics need two or more")
    collector = Collector(images.number, logits)
    size = extractor.batch_size(batch, images.number)
    batches = images.shared_batches(size, extractor.mesh)
    collector.add_all(map(extractor.of_batch, batches))
    return collector.result()


def reference(
    path, extractor: Extractor, channels: int = 3, cache=None
) -> tuple[FeatureSet | None, str]:
    """Returns a reference by its path, and a hash of what it was made from.

    Images; pytorch-fid's statistics of them; or ADM's reference files, of which the
    images, which may be some alone, are looked at for neighbourhoods and kernels.

    Returns:
      the reference, in the first process alone; and the hash.

    Raises:
      DataError: where it is none of these.
    """
    path, known = pathlib.Path(path), None
    has_images = True
    if path.suffix == ".npz" and path.exists():
        with _opened(path) as file:
            known = load(path) if "mu" in file.files else None
            has_images = "arr_0" in file.files
            if known is not None:
                _check_origin(path, file, extractor)
    if known is not None and not has_images:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return processes.run_on_process_0(lambda: known), digest
    images = ImageSet(path, channels)
    digest = processes.digest_from_process_0(images.fingerprint)
    found = cached(
        extractor,
        f"{digest} {channels}",
        lambda: of_images(images, extractor, logits=False),
        cache,
    )
    if known is not None and found is not None:
        found = known._replace(pool=found.pool)
    return found, digest


def _check_origin(path, file, extractor: Extractor) -> None:
    """Raises DataError if statistics name another extractor than `extractor`."""
    if "extractor" not in file.files:
        logging.warning(
            "%s does not say which features it is of: it must be those of %s",
            path, extractor.name,
        )  # fmt: skip
    elif str(file["extractor"]) != extractor.fingerprint:
        raise DataError(
            f"{path} is of the features of another network, or of images resized in "
            f"another way, than {extractor.name}"
        )


def _opened(path):
    try:
        return np.load(path)
    except Exception as error:  # of zipfile, of NumPy
        raise DataError(f"{path} is no .npz: {error}") from error
