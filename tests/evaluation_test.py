# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests metrics of images and codes against values computed by hand."""

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from rq.metrics import code_usage as code_metrics
from rq.metrics import image_quality as image_metrics


@pytest.mark.parametrize(
    ("difference", "decibels"),
    [(2.0, 0.0), (0.2, 20.0), (0.02, 40.0), (0.0, np.inf)],
)
def test_psnr_of_a_constant_difference(difference, decibels):
    a = np.full((3, 4, 5, 1), -1.0, np.float32)
    np.testing.assert_allclose(
        image_metrics.psnr(a, a + difference),
        np.full(3, decibels),
        rtol=1e-6,
        atol=1e-5,
    )


def test_psnr_is_of_each_image_over_all_leading_axes():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-1, 1, (2, 2, 3, 4, 4, 3))
    together = image_metrics.psnr(a, b)
    assert together.shape == (2, 3)
    np.testing.assert_allclose(together[1, 2], image_metrics.psnr(a[1, 2], b[1, 2]))
    expected = 10 * np.log10(4 / np.mean((a[1, 2] - b[1, 2]) ** 2))
    np.testing.assert_allclose(together[1, 2], expected)


def test_psnr_refuses_shapes_that_differ():
    with pytest.raises(ValueError, match=r"\(1, 4, 4, 3\), \(1, 4, 4, 1\)"):
        image_metrics.psnr(np.zeros((1, 4, 4, 3)), np.zeros((1, 4, 4, 1)))


def test_psnr_takes_values_outside_the_range_and_small_errors_as_they_are():
    a = np.ones((2, 4, 4, 1))
    np.testing.assert_allclose(image_metrics.psnr(a, a + 4), 10 * np.log10(4 / 16))
    np.testing.assert_allclose(image_metrics.psnr(a, a - 1e-9), 186.02, atol=0.01)
    with pytest.raises(ValueError, match="not \\(4, 4\\)"):  # without channels
        image_metrics.psnr(a[0, ..., 0], a[0, ..., 0])


@pytest.mark.parametrize("shape", [(3, 32, 32, 1), (2, 11, 40, 3)])
@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0])
def test_ssim_is_that_of_scikit_image(shape, noise):
    rng = np.random.default_rng(0)
    a = rng.uniform(-1, 1, shape).astype(np.float32)
    a = (a + np.roll(a, 1, 1) + np.roll(a, 1, 2)) / 3  # neighbours alike
    b = np.clip(a + noise * rng.normal(size=shape), -1, 1).astype(np.float32)
    expected = [
        structural_similarity(
            x.astype(np.float64),
            y.astype(np.float64),
            data_range=2.0,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for x, y in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(image_metrics.ssim(a, b), expected, rtol=1e-4, atol=1e-5)


def test_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(ValueError, match="sides of 11 or more"):
        image_metrics.ssim(np.zeros((1, 8, 8, 3)), np.zeros((1, 8, 8, 3)))


def test_histogram_counts_each_depth_with_its_own_size():
    codes = np.array([[[[0, 4], [1, 0]]], [[[0, 4], [0, 4]]]])  # [2, 1, 2, 2]
    first, second = code_metrics.histogram(codes, (2, 5))
    np.testing.assert_array_equal(first, [3, 1])
    np.testing.assert_array_equal(second, [1, 0, 0, 0, 3])
    shared = code_metrics.histogram(codes, 5)
    assert [len(counts) for counts in shared] == [5, 5]


def test_usage_of_uniform_and_of_constant_codes():
    uniform = np.arange(8)
    constant = np.full(8, 3)
    usage = code_metrics.usage(np.stack([uniform, constant], axis=-1), 16)
    np.testing.assert_array_equal(usage["used"], [8, 1])
    np.testing.assert_allclose(usage["usage"], [0.5, 1 / 16])
    np.testing.assert_allclose(usage["entropy_bits"], [3.0, 0.0])
    np.testing.assert_allclose(usage["perplexity"], [8.0, 1.0])
    assert not np.signbit(usage["entropy_bits"]).any()  # printed as 0, not -0


def test_entropy_of_unequal_frequencies():
    usage = code_metrics.usage(np.array([[0], [0], [1], [2]]), (4,))
    np.testing.assert_allclose(usage["entropy_bits"], [1.5])
    np.testing.assert_allclose(usage["perplexity"], [2**1.5])


@pytest.mark.parametrize(
    ("codes", "sizes", "message"),
    [
        ([[0, 4]], 4, r"codes 4\.\.4 at depth 2 are outside the codebook 0\.\.3"),
        ([[-1, 0]], 4, r"codes -1\.\.-1 at depth 1"),
        ([[0, 0]], (4, 4, 4), "codes of 2 depths, but 3 codebook sizes"),
        (np.zeros((0, 2), int), 4, "no codes at depth 1"),
    ],
)
def test_codes_that_do_not_fit_the_codebook_are_refused(codes, sizes, message):
    with pytest.raises(ValueError, match=message):
        code_metrics.usage(np.asarray(codes), sizes)
