# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares label maps: confusion, mean IoU, pixel accuracy."""

from __future__ import annotations

import numpy as np


def confusion(true: np.ndarray, made: np.ndarray, classes: int) -> np.ndarray:
    """Returns how many pixels of each class were given each class, int64 `[L, L]`.

    Args:
      true, made: integers of one shape, in 0..L - 1.
      classes: L.

    Raises:
      ValueError: if the shapes differ or a label is out of range.
    """
    if true.shape != made.shape:
        raise ValueError(f"label maps of one shape, not {true.shape}, {made.shape}")
    for labels in (true, made):
        if labels.size and not 0 <= labels.min() <= labels.max() < classes:
            raise ValueError(
                f"labels {labels.min()}..{labels.max()} of {classes} classes"
            )
    pairs = true.astype(np.int64) * classes + made
    return np.bincount(pairs.ravel(), minlength=classes**2).reshape(classes, classes)


def iou(counts: np.ndarray) -> np.ndarray:
    """Returns intersection over union of each class, float64 `[L]`.

    NaN of classes that neither the truth nor the maps have.

    Args:
      counts: of `confusion`.
    """
    both = np.diag(counts).astype(np.float64)
    either = counts.sum(axis=0) + counts.sum(axis=1) - both
    return np.divide(both, either, out=np.full(len(both), np.nan), where=either > 0)


def statistics(counts: np.ndarray) -> dict[str, float]:
    """Returns 'mIoU', the mean over classes that occur, and 'pixel accuracy'.

    Args:
      counts: of `confusion`.

    Raises:
      ValueError: if there are no pixels.
    """
    if not counts.sum():
        raise ValueError("no pixels to compare")
    return {
        "mIoU": float(np.nanmean(iou(counts))),
        "pixel accuracy": float(np.diag(counts).sum() / counts.sum()),
    }
