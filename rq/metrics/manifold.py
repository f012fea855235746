# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Computes precision, recall, density and coverage from nearest neighbours.

Distances are computed in blocks: all of 50,000 x 50,000 would take 10 GB in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BLOCK = 4096  # rows and columns of distances at a time: 64 MiB
NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5  # as in the papers


class Manifold(NamedTuple):
    """Metrics in [0, 1], except for density, which may exceed 1.

    The k-ball of an image is the ball around it up to its k-th nearest neighbour.

    Attributes:
      precision: fraction of generated images in the 3-ball of any real image
        (Kynkaanniemi et al. 2019).
      recall: fraction of real images in the 3-ball of any generated image.
      density: mean number of real 5-balls around a generated image, divided by 5
        (Naeem et al. 2020); 1 if both distributions are equal.
      coverage: fraction of real images with a generated image in their 5-ball.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(generated, real, block: int = BLOCK) -> Manifold:
    """Returns all four metrics of features `[N, F]` and `[M, F]`.

    Raises:
      ValueError: if there are too few images.
    """
    generated, real = np.asarray(generated), np.asarray(real)
    if min(len(generated), len(real)) <= DENSITY_NEIGHBOURS:
        raise ValueError(
            f"{len(generated)} and {len(real)} images: more than {DENSITY_NEIGHBOURS} "
            "of both are needed"
        )
    # Centring reduces the rounding error of |x|^2 + |y|^2 - 2 x y.
    centre = real.mean(axis=0, dtype=np.float64).astype(np.float32)
    generated, real = (np.asarray(x, np.float32) - centre for x in (generated, real))
    real_radii, wide_radii = _radii(real, block)
    made_radii, _ = _radii(generated, block)
    inside = np.zeros(len(generated), bool)
    density = np.zeros(len(generated), np.int64)
    found, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows in _blocks(len(generated), block):
        for columns in _blocks(len(real), block):
            distances = _distances(generated[rows], real[columns])
            inside[rows] |= np.any(distances <= real_radii[columns], axis=1)
            found[columns] |= np.any(distances <= made_radii[rows, None], axis=0)
            near = distances < wide_radii[columns]
            density[rows] += near.sum(axis=1)
            covered[columns] |= near.any(axis=0)
    return Manifold(
        float(inside.mean()),
        float(found.mean()),
        float(density.mean() / DENSITY_NEIGHBOURS),
        float(covered.mean()),
    )


def _blocks(number: int, block: int):
    return [slice(i, min(i + block, number)) for i in range(0, number, block)]


def _distances(x, y):
    """Returns squared distances float32 `[n, m]` of blocks `[n, F]` and `[m, F]`."""
    squares = np.einsum("nf,nf->n", x, x)[:, None] + np.einsum("mf,mf->m", y, y)
    return squares - 2 * (x @ y.T)


def _radii(features, block: int):
    """Returns squared distances `[2, N]` to each third and fifth nearest neighbour."""
    keep = DENSITY_NEIGHBOURS + 1  # the nearest is the feature itself
    radii = []
    for rows in _blocks(len(features), block):
        nearest = np.empty((rows.stop - rows.start, 0), np.float32)
        for columns in _blocks(len(features), block):
            distances = _distances(features[rows], features[columns])
            if rows == columns:
                np.fill_diagonal(distances, 0)  # exactly, so that it stays nearest
            if distances.shape[1] > keep:
                distances = np.partition(distances, keep, axis=1)[:, :keep]
            nearest = np.concatenate([nearest, distances], axis=1)
            nearest = np.sort(nearest, axis=1)[:, :keep]
        radii.append(nearest[:, [NEIGHBOURS, DENSITY_NEIGHBOURS]])
    return np.concatenate(radii).T
