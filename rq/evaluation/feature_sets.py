# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Collects and caches features of sets of images; computes metrics of two sets."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from rq.data import DataError, contents
from rq.evaluation.extractors import Extractor, Found
from rq.evaluation.image_files import ImageSet
from rq.metrics import distances, moments
from rq.metrics.manifold import DENSITY_NEIGHBOURS, manifold
from rq.metrics.moments import Gaussian, Moments
from rq.parallel import atomic_files, processes

BATCH = 64  # images per batch
SPLITS = 10  # of the images; the Inception score is the mean over them
SHUFFLE_SEED = 2020  # of the images' order, as in torch-fidelity
# Features kept for neighbourhoods and kernels, at most; of larger sets a random subset.
POOL = 50_000
# Part of the names of cached references: increase it if the stored contents change.
CACHE_VERSION = 2


class FeatureSet(NamedTuple):
    """Holds features of a set of images, and their moments; None if unknown.

    Attributes:
      gaussian: moments of the features.
      spatial: moments of the spatial features.
      pool: features `[N, F]`, float32, of all images or a subset.
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


def collect(
    batches: Iterable[Found], number: int | None = None, logits: bool = True
) -> FeatureSet:
    """Returns the features of all batches, and keeps no more of them than needed.

    Args:
      batches: features of one batch or more.
      number: number of images in total; of more than `POOL` a subset of features is
        kept. If None all are kept.
      logits: whether to keep logits.
    """
    chosen = None
    if number is not None and number > POOL:
        chosen = np.zeros(number, bool)
        chosen[kept(number)] = True
    gaussian, spatial = moments.Stream(), moments.Stream()
    seen, pools, all_logits = 0, [], []
    for found in batches:
        gaussian.add(found.pool)
        if found.spatial is not None:
            spatial.add(found.spatial)
        if logits and found.logits is not None:
            all_logits.append(found.logits)
        rows = slice(seen, seen + len(found.pool))
        pools.append(found.pool if chosen is None else found.pool[chosen[rows]])
        seen = rows.stop
    of_all = gaussian.moments()
    assert of_all is not None  # there is one batch or more
    return FeatureSet(
        of_all,
        spatial.moments(),
        np.concatenate(pools),
        np.concatenate(all_logits) if all_logits else None,
    )


def check(number: int, real: FeatureSet, extractor: Extractor) -> None:
    """Checks that metrics can be computed, before sampling and extraction.

    Args:
      number: number of generated images.
      real: the reference.
      extractor: extractor for the generated images.

    Raises:
      DataError: if there are too few images, or the reference has other features.
    """
    if number < 2:
        raise DataError(f"metrics need two images or more, not {number}")
    if len(real.gaussian.mean) != extractor.width:
        raise DataError(
            f"the reference has {len(real.gaussian.mean)} features, {extractor.name} "
            f"{extractor.width}: they are of another network"
        )


def metrics(
    made: FeatureSet, real: FeatureSet, label: str = ""
) -> dict[str, float | None]:
    """Returns all metrics that two sets of images allow.

    Args:
      made: the generated images; the Inception score is of their logits.
      real: the reference.
      label: label of the features in all names, see `rq.evaluation.extractors`.

    Returns:
      Numbers by name: FID and the condition number of its covariances (None if
      infinite), sFID, KID (if there are 1,000 images, the size of its subsets),
      precision, recall, density, coverage, IS.
    """
    named = f" ({label})" if label else ""
    found: dict[str, float | None] = {}
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
            fractions = manifold(made.pool, real.pool)._asdict()
            found |= {f"{name}{named}": value for name, value in fractions.items()}
    if made.logits is not None and len(made.logits) >= SPLITS:
        # Shuffled, because images may be sorted by class.
        order = np.random.RandomState(SHUFFLE_SEED).permutation(len(made.logits))
        score = distances.inception_score(made.logits[order], SPLITS)
        found[f"IS{named}"] = score.mean
        found[f"IS deviation{named}"] = score.std
    return found


# Files are pytorch-fid's `.npz`, with 'mu' and 'sigma', and ADM's 'mu_s' and 'sigma_s'
# for sFID; 'number', 'pool' and 'logits' are our own.


def save(path, found: FeatureSet, **notes: str) -> None:
    """Writes an `.npz` atomically."""
    arrays: dict[str, Any] = dict(notes)
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
    """Returns features written by `save`, or statistics of pytorch-fid or ADM.

    Raises:
      DataError: if the file is missing or of another kind.
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
    """Returns what `load` does; None if missing, damaged, or of another `about`."""
    if not pathlib.Path(path).exists():
        return None
    try:
        with np.load(path) as file:
            if about is not None and str(file["about"]) != about:
                return None
        return load(path)
    except moments.DAMAGE as error:
        logging.warning("%s is damaged (%s): it is recomputed", path, error)
        return None


def cached(
    extractor: Extractor, source: str, compute: Callable[[], FeatureSet], cache=None
) -> FeatureSet | None:
    """Returns a reference from the cache, or computes it; None if not process 0.

    Args:
      extractor: extractor of the features.
      source: hash of the images and of how they are read.
      compute: function that returns the reference; all processes call it.
      cache: folder of the cache; ~/.cache/rq/statistics if None.
    """
    about = f"{source} {extractor.fingerprint} {CACHE_VERSION}"
    key = hashlib.sha256(about.encode()).hexdigest()
    folder = pathlib.Path(cache or contents.cache_folder() / "statistics")
    path = folder / f"{key[:24]}.npz"
    known = processes.run_on_process_0(lambda: load_if_whole(path))
    if processes.broadcast(known is not None):
        logging.info("reference: statistics from %s", path)
        return known
    found = compute()

    def keep():
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, found, source=source, extractor=extractor.fingerprint)
        return found

    return processes.run_on_process_0(keep)


def of_images(
    images: ImageSet, extractor: Extractor, logits: bool = True, batch: int = BATCH
) -> FeatureSet:
    """Returns the features of a set of images.

    Raises:
      DataError: if there are fewer than two.
    """
    if images.number < 2:
        raise DataError(f"{images.path} has one image; metrics need two or more")
    size = extractor.batch_size(batch, images.number)
    batches = images.shared_batches(size, extractor.mesh)
    return collect(map(extractor.of_batch, batches), images.number, logits)


def reference(
    path, extractor: Extractor, channels: int = 3, cache=None
) -> tuple[FeatureSet | None, str]:
    """Returns the reference at a path, and a hash of its contents.

    The path is of images, of pytorch-fid's statistics, or of one of ADM's reference
    files, whose images (some or all) are used for neighbourhoods and kernels.

    Returns:
      The reference, or None in other processes than 0; and the hash.

    Raises:
      DataError: if it is none of these.
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
            "%s does not name its features; they must be those of %s",
            path, extractor.name,
        )  # fmt: skip
    elif str(file["extractor"]) != extractor.fingerprint:
        raise DataError(
            f"{path} was not made with {extractor.name}, but with another network or "
            "resizing: make it again, or choose the same features"
        )


def _opened(path):
    try:
        return np.load(path)
    except Exception as error:  # zipfile and NumPy raise several types
        raise DataError(f"{path} is no .npz: {error}") from error
