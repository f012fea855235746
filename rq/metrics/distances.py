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
    """Between two Gaussians: |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Heusel 2017).

    The eigenvalues of A B are those of A^(1/2) B A^(1/2), which is symmetric: their
    roots are exact where those of a general matrix are not, and no small multiple of
    the identity is needed where covariances are singular.

    Args:
      mean_a, mean_b: `[F]`.
      covariance_a, covariance_b: `[F, F]`.

    Raises:
      ValueError: on other shapes, or what is not finite.
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
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = root @ b @ root
    values = np.linalg.eigvalsh((product + product.T) / 2)
    largest, smallest = values[-1], values[0]
    rounding = largest * width * np.finfo(np.float64).eps
    condition = largest / smallest if smallest > rounding else np.inf
    traces = np.trace(a) + np.trace(b) - 2 * np.sum(np.sqrt(np.maximum(values, 0)))
    apart = np.sum((mean_a - mean_b) ** 2)
    return Frechet(float(apart + traces), float(condition))


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
