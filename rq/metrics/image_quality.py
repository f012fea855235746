# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares images with pixels in [-1, 1]: PSNR and SSIM."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

PEAK_TO_PEAK = 2.0
# SSIM (Wang et al. 2004): the Gaussian window and the constants that stabilise ratios.
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03


def psnr(a, b) -> np.ndarray:
    """Returns the peak signal-to-noise ratio of each image, in decibels.

    Args:
      a, b: images `[..., H, W, C]` in [-1, 1]; other values are not clipped.

    Returns:
      float64 `[...]`, infinite if the images are equal.

    Raises:
      ValueError: if the shapes differ or are not those of images.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim < 3:
        raise ValueError(
            f"images [..., H, W, C] of one shape, not {a.shape}, {b.shape}"
        )
    return psnr_of_error(np.mean((a - b) ** 2, axis=(-3, -2, -1)))


def psnr_of_error(error) -> np.ndarray:
    """Returns the PSNR, float64, of mean squared errors of any shape."""
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(PEAK_TO_PEAK**2 / np.asarray(error, np.float64))


def ssim(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the structural similarity of each image, at most 1 (Wang et al. 2004).

    It is the mean over channels and over all windows inside the image, as in the paper
    and in scikit-image with `gaussian_weights`. Traceable, float32.

    Args:
      a, b: images `[B, H, W, C]` in [-1, 1], sides of at least `SSIM_WINDOW`.

    Returns:
      float32 `[B]`.

    Raises:
      ValueError: if the shapes differ, or images are smaller than the window.
    """
    if a.shape != b.shape or a.ndim != 4 or min(a.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(
            f"images [B, H, W, C] of one shape, with sides of {SSIM_WINDOW} or more, "
            f"not {a.shape}, {b.shape}"
        )
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    window = np.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    window = (window / window.sum()).astype(np.float32)
    batch, _, _, channels = a.shape
    planes = jnp.moveaxis(jnp.stack([a, b, a * a, b * b, a * b]), -1, 2)
    planes = planes.reshape(-1, 1, *a.shape[1:3])
    for shape in ((1, 1, SSIM_WINDOW, 1), (1, 1, 1, SSIM_WINDOW)):
        kernel = jnp.asarray(window.reshape(shape))
        planes = jax.lax.conv_general_dilated(
            planes, kernel, (1, 1), "VALID", precision="highest"
        )
    planes = planes.reshape(5, batch, channels, *planes.shape[2:])
    mean_a, mean_b, square_a, square_b, product = planes
    both, means = mean_a * mean_b, mean_a**2 + mean_b**2
    variances, covariance = square_a + square_b - means, product - both
    c1, c2 = (SSIM_K1 * PEAK_TO_PEAK) ** 2, (SSIM_K2 * PEAK_TO_PEAK) ** 2
    similarity = (2 * both + c1) * (2 * covariance + c2)
    similarity /= (means + c1) * (variances + c2)
    return jnp.mean(similarity, axis=(1, 2, 3))
