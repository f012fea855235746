# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Rejection sampling keeps the best candidates of each condition, and no others."""

import jax
import numpy as np
import pytest
from stages_test import make_sampler, make_stage, one_device, tiny

from rq.config import ConfigError, SamplingConfig
from rq.sampling import conditions, rejection


@pytest.fixture(scope="module")
def sampler():
    return make_sampler(make_stage("transformer", tiny(), one_device())[0])


def bright(images):
    """A classifier by brightness: dark images are of class 3."""
    mean = images.mean((1, 2, 3))[:, None]
    return jax.nn.log_softmax(mean * np.where(np.arange(10) == 3, -9.0, 9.0))


def by_class(images):
    """A classifier that is surer of higher classes the brighter an image is."""
    return jax.nn.log_softmax(images.mean((1, 2, 3))[:, None] * np.arange(10))


def draw(sampler, number, classes, keep=1.0, classifier=None, **options):
    asked = conditions.parse(tiny(), classes=classes)
    config = SamplingConfig(**options)
    return rejection.draw(
        sampler, asked, number, config, keep=keep, classifier=classifier
    )


def collected(*args, **options):
    return rejection.collect(draw(*args, **options))


def test_rejection_keeps_the_best_of_each_class(sampler):
    options = dict(seed=5, batch_size=4)
    found = collected(sampler, 5, (7, 3), keep=0.3, classifier=bright, **options)
    np.testing.assert_array_equal(found.labels, [7, 7, 7, 3, 3])
    candidates = np.repeat([7, 3], [10, 7]).astype(np.int32)
    every = sampler.sample(candidates, 17, SamplingConfig(**options))
    brightness = every.images.mean((1, 2, 3))
    best = [*np.argsort(-brightness[:10])[:3], *(10 + np.argsort(brightness[10:])[:2])]
    np.testing.assert_array_equal(found.codes, every.codes[best])
    np.testing.assert_allclose(found.images, every.images[best], atol=1e-5)
    expected = np.exp(bright(found.images))[np.arange(5), found.labels]
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-4)
    for wrong in (0.0, -1, 1.5):
        with pytest.raises(ConfigError, match="--keep"):
            collected(sampler, 5, (7, 3), keep=wrong, classifier=bright)
    # One of one: fewer kept than there are samples asked of a condition at once.
    one = collected(sampler, 1, (7,), keep=0.3, classifier=bright, **options)
    assert len(one.images) == 1


@pytest.mark.parametrize(
    "batch_size", [pytest.param(1, marks=pytest.mark.slow), 3, 100]
)
def test_what_is_kept_does_not_depend_on_batches(sampler, batch_size):
    options = dict(keep=0.4, classifier=by_class)
    whole = collected(sampler, 11, (1, 4, 8), batch_size=40, **options)
    parts = collected(sampler, 11, (1, 4, 8), batch_size=batch_size, **options)
    np.testing.assert_array_equal(parts.codes, whole.codes)
    np.testing.assert_array_equal(parts.labels, whole.labels)


def test_a_job_keeps_what_a_stream_keeps(sampler):
    """`best` of all scores, and `draw`, which never holds all."""
    asked = conditions.parse(tiny(), classes=(1, 4, 8))
    config = SamplingConfig(batch_size=5)
    among = rejection.make_candidates(asked, asked.spread(8), 0.4)
    every = range(len(among.labels))
    scored = rejection.scored(sampler, among, every, by_class, config)
    codes, scores = map(np.concatenate, zip(*scored, strict=True))
    chosen = rejection.best(among, scores)
    found = collected(
        sampler, 8, (1, 4, 8), keep=0.4, classifier=by_class, batch_size=3
    )
    np.testing.assert_array_equal(found.codes, codes[chosen])
    np.testing.assert_array_equal(found.labels, among.labels[chosen])
    np.testing.assert_allclose(found.probabilities, np.exp(scores[chosen]), rtol=1e-4)


@pytest.mark.parametrize(
    "keep, drawn",
    [(0.1, [30, 20]), (0.5, [6, 4]), (0.3, [10, 7]), (0.7, [5, 3]), (1.0, [3, 2])],
)
def test_candidates_are_samples_over_the_fraction_rounded_up(keep, drawn):
    asked = conditions.parse(tiny(), classes=(4, 2))
    among = rejection.make_candidates(asked, asked.spread(5), keep)
    np.testing.assert_array_equal(among.drawn, drawn)
    np.testing.assert_array_equal(among.kept, [3, 2])
    np.testing.assert_array_equal(among.labels, np.repeat([4, 2], drawn))
    np.testing.assert_array_equal(among.cond, among.labels)


def test_ranking_a_text_alone_asks_for_a_class():
    asked = conditions.Conditions(
        np.zeros((1, 3), np.int32), np.zeros(1, np.int32), [{"text": "a star"}]
    )
    with pytest.raises(ConfigError, match="give --classes"):
        rejection.make_candidates(asked, asked.spread(2), 0.5)


def test_a_quotient_that_is_whole_but_for_rounding_adds_no_candidate():
    assert 21 / 0.7 > 30
    asked = conditions.parse(tiny(), classes=(4,))
    among = rejection.make_candidates(asked, asked.spread(21), 0.7)
    assert among.drawn.tolist() == [30]


def test_without_ranking_every_batch_has_its_own_labels(sampler):
    batches = list(draw(sampler, 7, (5, 0), batch_size=3))
    labels = [batch.labels.tolist() for batch in batches]
    assert labels == [[5, 5, 5], [5, 0, 0], [0]]
    assert all(batch.probabilities is None for batch in batches)
    whole = sampler.sample(np.repeat([5, 0], [4, 3]), 7, SamplingConfig(batch_size=7))
    found = rejection.collect(iter(batches))
    np.testing.assert_array_equal(found.codes, whole.codes)
