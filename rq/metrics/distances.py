# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Distances of generated images from real ones in features; arrays in, numbers out.

Float64 throughout: Frechet distances are small differences of large traces.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Of KID, as torch-fidelity and the paper have it.
SUBSETS, SUBSET_SIZE, KID_SEED = 100, 1000, 2020


class Frechet(NamedTuple):
    """A Frechet distance.

    Attributes:
      value: the distance, as FID has it (squared).
      condition: of the product of both covariances, largest over smallest eigenvalue;
        infinite where it is singular, as with fewer images than features.
    """

    value: float
    condition: float


def frechet_distance(mean_a, covariance_a, mean_b, covariance_b) -> Frechet:
    """Returns |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)) of two Gaussians (Heusel 2017).

    tr (A B)^(1/2) is the sum of the singular values of R_a^T R_b with A = R_a R_a^T:
    those keep the precision that roots of the eigenvalues of a product lose, so that
    singular covariances need no multiple of the identity and equal sets are 0 apart.

    Args:
      mean_a, mean_b: `[F]`.
      covariance_a, covariance_b: `[F, F]`.

    Returns:
      The distance; 0 where it is less than its rounding.

    Raises:
      ValueError: on other shapes, or numbers that are not finite.
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
    # Eigenvalues of A B; those that a root lacks are 0.
    values = np.pad(roots**2, (0, width - len(roots)))
    condition = np.inf
    if values[-1] > epsilon * values[0]:
        condition = values[0] / values[-1]
    traces = np.trace(a) + np.trace(b)
    value = np.sum((mean_a - mean_b) ** 2) + traces - 2 * np.sum(roots)
    return Frechet(float(value if value > epsilon * traces else 0), float(condition))


def _root(covariance, epsilon):
    """R `[F, rank]` with R R^T = covariance; its rank as LAPACK would count it."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    kept = values > epsilon * max(values[-1], 0)
    return vectors[:, kept] * np.sqrt(values[kept])


class Estimate(NamedTuple):
    """A mean over parts of the images, and the standard deviation among them."""

    mean: float
    std: float


def kernel_distance(
    a, b, subsets: int = SUBSETS, size: int = SUBSET_SIZE, seed: int = KID_SEED
) -> Estimate:
    """KID: the squared maximum mean discrepancy under a cubic kernel (Binkowski 2018).

    Unbiased, over random subsets drawn as torch-fidelity draws them.

    Args:
      a, b: features `[N, F]`, `[M, F]`.
      subsets, size, seed: how many subsets of how many features, and of which seed.

    Raises:
      ValueError: where there are fewer features than a subset has.
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
    """exp of the mean divergence of p(class | image) from p(class) (Salimans 2016).

    Args:
      logits: `[N, K]`, in the order of generation.
      splits: parts j N / splits to (j + 1) N / splits, each with its own p(class).
      ddof: 1: deviation over `splits - 1` as the paper's code; 0 as torch-fidelity.

    Raises:
      ValueError: where there are fewer images than parts.
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
