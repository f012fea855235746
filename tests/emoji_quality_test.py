# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests the emoji benchmark: its captions, its classifier, its targets."""

import pathlib
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn")

FOLDER = pathlib.Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(FOLDER))
    try:
        import emoji_quality
    finally:
        sys.path.remove(str(FOLDER))
    return emoji_quality


class Source:
    """Has forty images of two captions each."""

    def __len__(self):
        return 40

    def read(self, index):
        return {"label": np.int32(index % 9)}, (f"emoji {index}", "another name")


@pytest.mark.parametrize("number", [7, 40, 100])
def test_captions_are_drawn_once_each_with_their_groups(benchmark, number):
    captions, groups = benchmark.captions_of(Source(), number, np.random.default_rng(0))
    assert len(set(captions)) == len(captions) == min(number, 40)
    assert [int(caption.split()[1]) % 9 for caption in captions] == list(groups)


def test_the_independent_classifier_reads_rare_classes(benchmark):
    """One image in fifty is of the class with a bright corner."""
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 0, (500, 8, 8, 3)).astype(np.float32)
    labels = (np.arange(500) % 50 == 0).astype(np.int32)
    images[labels == 1, :4, :4] += 1
    classifier = benchmark.train_classifier(images[:400], labels[:400])
    found = classifier.predict(benchmark.flatten(images[400:]))
    np.testing.assert_array_equal(found, labels[400:])


def way(independent, own):
    return {"independent": independent, "own": own}


@pytest.mark.parametrize(
    "changes, missed",
    [
        ({}, 0),
        ({"guidance": way(0.6, 0.7)}, 1),  # independent as before
        ({"rejection": way(0.5, 0.6)}, 2),
    ],
)
def test_guidance_and_rejection_must_raise_agreement(benchmark, changes, missed):
    results = {"plain": way(0.6, 0.6)}
    results |= dict.fromkeys(("guidance", "rejection", "both"), way(0.7, 0.8))
    agreement = {"agreement": results | changes}
    assert len(benchmark.missed_targets(agreement)) == missed


@pytest.mark.parametrize("agreement, missed", [(0.8, 0), (0.795, 1)])
def test_captions_must_show_their_group(benchmark, agreement, missed):
    assert len(benchmark.missed_targets({"train_captions": agreement})) == missed
