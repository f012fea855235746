# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Conditions as users give them: which sample has which, and how they are ranked."""

import numpy as np
import pytest
from stages_test import text_config, tiny

from rq.config import ConfigError
from rq.sampling import conditions


@pytest.mark.parametrize(
    ("number", "classes", "expected"),
    [
        (5, (7, 3), [7, 7, 7, 3, 3]),
        (7, (7, 3, 1), [7, 7, 7, 3, 3, 1, 1]),
        (8, (7, 3, 1), [7, 7, 7, 3, 3, 3, 1, 1]),
        (2, (7, 3, 1), [7, 3]),
        (3, (), [0, 1, 2]),
    ],
)
def test_samples_are_spread_evenly_over_conditions(number, classes, expected):
    asked = conditions.parse(tiny(), classes=classes)
    labels, cond = asked.at(asked.spread(number))
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(cond, expected)


@pytest.mark.parametrize("label", [-1, 10])
def test_classes_that_the_model_lacks_are_refused(label):
    """10 is the number that stands for no class."""
    with pytest.raises(ConfigError, match="the model has 0..9"):
        conditions.parse(text_config("class"), classes=(1, label))


def test_each_text_and_class_is_a_condition_of_its_own():
    config = text_config("class_text")
    tokens = {"a": [1, 2, 3, 4, 5], "b": [6, 7, 8, 9, 10]}
    asked = conditions.parse(config, tokens.get, classes=(3,), texts=("a", "b"))
    expected = [[11 + 3, *tokens["a"]], [11 + 3, *tokens["b"]]]
    np.testing.assert_array_equal(asked.cond, expected)
    assert asked.names == [{"text": "a", "class": 3}, {"text": "b", "class": 3}]
    np.testing.assert_array_equal(asked.labels, [3, 3])
    asked = conditions.parse(config, tokens.get, classes=(3, 5), texts=("a",))
    assert [one["class"] for one in asked.names] == [3, 5]
    np.testing.assert_array_equal(asked.cond[:, 0], [14, 16])


class Tokens(dict):
    """Tokens by text, and those of no text."""

    null = np.array([1, 0, 0, 0, 0])
    __call__ = dict.get


@pytest.mark.parametrize(
    ("classes", "texts", "conds", "names"),
    [
        ((3, 4), (), [[14, 1, 0, 0, 0, 0], [15, 1, 0, 0, 0, 0]], {"class"}),
        ((), ("a",), [[21, 1, 2, 3, 4, 5]], {"text"}),
        ((3,), ("a",), [[14, 1, 2, 3, 4, 5]], {"class", "text"}),
    ],
)
def test_a_model_of_both_that_was_trained_without_either_needs_only_one(
    classes, texts, conds, names
):
    config = text_config("class_text")
    tokens = Tokens(a=[1, 2, 3, 4, 5])
    asked = conditions.parse(config, tokens, classes=classes, texts=texts)
    np.testing.assert_array_equal(asked.cond, conds)
    assert all(set(one) == names for one in asked.names)
    assert len(conditions.parse(config, tokens).cond) == 10  # each class, no text


@pytest.mark.parametrize("texts", [(), ("a",)])
def test_a_model_that_always_had_both_needs_the_text_and_takes_all_classes(texts):
    config = text_config("class_text")
    config.transformer.condition_dropout = 0.0
    if not texts:
        with pytest.raises(ConfigError, match="give --text"):
            conditions.parse(config, Tokens(), classes=(3,))
        return
    asked = conditions.parse(config, Tokens(a=[1, 2, 3, 4, 5]), texts=texts)
    np.testing.assert_array_equal(asked.cond[:, 0], np.arange(11, 21))


def test_conditions_of_an_image_are_ranked_with_their_bits_per_code():
    asked = conditions.parse(tiny(), classes=(4, 0, 9))
    by_depth = np.log(2) * np.array([[-8.0, -4.0], [-2.0, -2.0], [-4.0, -40.0]])
    ranked = asked.ranked(by_depth, positions=4)
    assert [one["class"] for one in ranked] == [0, 4, 9]
    assert ranked[0]["bits_per_code"] == pytest.approx([0.5, 0.5])
    assert ranked[2]["bits_per_code"] == pytest.approx([1.0, 10.0])
    assert ranked[1]["log_likelihood"] == pytest.approx(-12 * np.log(2))
