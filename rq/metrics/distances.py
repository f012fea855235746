# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Computes distances between generated and real images from their features.

Everything is in float64, since Frechet distances are small differences of large traces.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# The defaults of KID in torch-fidelity and the paper.
SUBSETS, SUBSET_SIZE, KID_SEED = 100, 1000, 2020


class Frechet(NamedTuple):
    """A Frechet distance.

    Attributes:
      value: the squared distance, as in FID.
      condition: condition number of the product of both covariances; infinite if it is
        singular, as with fewer images than features.
    """

    value: float
    condition: float


def frechet_distance(mean_a, covariance_a, mean_b, covariance_b) -> Frechet:
    """Returns |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)) of two Gaussians (Heusel 2017).

    tr (A B)^(1/2) is the sum of the singular values of R_a^T R_b with A = R_a R_a^T.
    These are more precise than roots of the eigenvalues of A B: singular covariances
    need no regularisation, and the distance of a set from itself is 0.

    Args:
      mean_a, mean_b: `[F]`.
      covariance_a, covariance_b: `[F, F]`.

    Returns:
      The distance, or 0 if it is below the rounding error.

    Raises:
      ValueError: if shapes do not match or values are not finite.
    """
    mean_a, mean_b, a, b = (
        np.asarray(x, np.float64) for x in (mean_a, mean_b, covariance_a, covariance_b)
    )
    width = len(mean_a)
    if mean_a.shape != mean_b.shape or a.shape != b.shape or a.shape != (width, width):
        raise ValueError(
            f"means {mean_a.shape}, {mean_b.shape} and covariances {a.shape}, {b.shape}"
        )
    if not all(np.isfinite(x).all() for x in (mean_a, mean_b, a, b)):
        raise ValueError("means or covariances are not finite")
    epsilon = width * np.finfo(np.float64).eps
    roots = np.linalg.svd(_root(a, epsilon).T @ _root(b, epsilon), compute_uv=False)
    # Eigenvalues of A B; those missing because of rank are 0.
    values = np.pad(roots**2, (0, width - len(roots)))
    condition = np.inf
    if values[-1] > epsilon * values[0]:
        condition = values[0] / values[-1]
    traces = np.trace(a) + np.trace(b)
    value = np.sum((mean_a - mean_b) ** 2) + traces - 2 * np.sum(roots)
    return Frechet(float(value if value > epsilon * traces else 0), float(condition))


def _root(covariance, epsilon):
    """Returns R `[F, rank]` with R R^T = covariance, the rank up to rounding."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    kept = values > epsilon * max(values[-1], 0)
    return vectors[:, kept] * np.sqrt(values[kept])


class Estimate(NamedTuple):
    """A mean over subsets of the images, and the standard deviation across them."""

    mean: float
    std: float


def kernel_distance(
    a, b, subsets: int = SUBSETS, size: int = SUBSET_SIZE, seed: int = KID_SEED
) -> Estimate:
    """Returns KID, the squared MMD with a cubic kernel (Binkowski et al. 2018).

    The estimate is unbiased and uses the same random subsets as torch-fidelity.

    Args:
      a, b: features `[N, F]`, `[M, F]`.
      subsets, size, seed: number of subsets, features per subset, random seed.

    Raises:
      ValueError: if there are fewer features than `size`.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if min(len(a), len(b)) < size:
        raise ValueError(f"subsets of {size} from {len(a)} and {len(b)} features")
    random, found = np.random.RandomState(seed), []
    for _ in range(subsets):
        x, y = (f[random.choice(len(f), size, replace=False)] for f in (a, b))
        xx, yy, xy = _cubic(x, x), _cubic(y, y), _cubic(x, y)
        within = np.sum(xx) - np.trace(xx) + np.sum(yy) - np.trace(yy)
        found.append(within / (size * (size - 1)) - 2 * np.mean(xy))
    return Estimate(float(np.mean(found)), float(np.std(found)))


def _cubic(x, y):
    return (x @ y.T / x.shape[1] + 1) ** 3


def inception_score(logits, splits: int = 10, ddof: int = 1) -> Estimate:
    """Returns exp(E KL(p(class | image) || p(class))) (Salimans et al. 2016).

    Args:
      logits: `[N, K]`, in the order of generation.
      splits: number of consecutive parts of the images, each with its own p(class).
      ddof: of the standard deviation: 1 in the paper, 0 in torch-fidelity.

    Raises:
      ValueError: if there are fewer images than splits.
    """
    logits = np.asarray(logits, np.float64)
    if len(logits) < splits:
        raise ValueError(f"{splits} parts of {len(logits)} images")
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    scores = []
    for j in range(splits):
        part = log_p[j * len(log_p) // splits : (j + 1) * len(log_p) // splits]
        p = np.exp(part)
        with np.errstate(divide="ignore"):
            marginal = np.log(p.mean(axis=0))
        divergence = np.sum(np.where(p > 0, p * (part - marginal), 0), axis=1)
        scores.append(np.exp(divergence.mean()))
    return Estimate(float(np.mean(scores)), float(np.std(scores, ddof=ddof)))
