# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Precision and recall, density and coverage: whose neighbourhoods hold whose images.

Distances of all to all are looked at in blocks and never held: 50,000 x 50,000 of them
take 10 GB in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BLOCK = 4096  # rows and columns of distances at a time: 64 MiB
NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5  # of the papers


class Manifold(NamedTuple):
    """Shares in [0, 1], but for density.

    Attributes:
      precision: of the generated images that lie in the ball of a real one, whose
        radius is the distance of its third neighbour (Kynkaanniemi et al. 2019).
      recall: of the real ones that lie in the ball of a generated one.
      density: how many real balls, of five neighbours, hold a generated image, over
        five (Naeem et al. 2020); 1 where both are alike.
      coverage: of the real balls of five neighbours that hold a generated image.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(generated, real, block: int = BLOCK) -> Manifold:
    """All four, of features `[N, F]` and `[M, F]`.

    Raises:
      ValueError: where there are too few for neighbours.
    """
    generated, real = np.asarray(generated), np.asarray(real)
    if min(len(generated), len(real)) <= DENSITY_NEIGHBOURS:
        raise ValueError(
            f"{len(generated)} and {len(real)} images: neighbourhoods need more than "
            f"{DENSITY_NEIGHBOURS}"
        )
    # Around one centre the rounding of |x|^2 + |y|^2 - 2 x y is least.
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
    """Squared distances of two blocks `[n, F]`, `[m, F]`: float32 `[n, m]`."""
    squares = np.einsum("nf,nf->n", x, x)[:, None] + np.einsum("mf,mf->m", y, y)
    return squares - 2 * (x @ y.T)


def _radii(features, block: int):
    """Squared distance of each feature's third and of its fifth neighbour, `[N]`."""
    keep = DENSITY_NEIGHBOURS + 1  # itself is the nearest
    radii = []
    for rows in _blocks(len(features), block):
        nearest = np.empty((rows.stop - rows.start, 0), np.float32)
        for columns in _blocks(len(features), block):
            distances = _distances(features[rows], features[columns])
            if rows == columns:
                np.fill_diagonal(distances, 0)  # exactly, so that it stays the nearest
            if distances.shape[1] > keep:
                distances = np.partition(distances, keep, axis=1)[:, :keep]
            nearest = np.concatenate([nearest, distances], axis=1)
            nearest = np.sort(nearest, axis=1)[:, :keep]
        radii.append(nearest[:, [NEIGHBOURS, DENSITY_NEIGHBOURS]])
    return np.concatenate(radii).T
