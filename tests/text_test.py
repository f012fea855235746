# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of tokenizing captions in any script, with reproducible dropout."""

import collections
import time

import hypothesis
import numpy as np
import pytest
import tokenizers
from hypothesis import strategies as st

from rq.data import DataError, text

CAPTIONS = [
    "a red heart", "a blue heart", "the flag of France", "grinning face with big eyes",
    "a grinning cat", "cat with wry smile", "broken heart", "flag: Réunion",
    "日本の旗", "Der große Käse", "два красных сердца",
] * 3  # fmt: skip
TEXTS = st.text(max_size=40) | st.sampled_from(CAPTIONS)
LENGTH = 12


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / text.FILE
    assert 257 < text.train(CAPTIONS, 320, path) <= 320
    return text.load(path, LENGTH)


@pytest.fixture(scope="module")
def authors(tmp_path_factory):
    """Returns files in the authors' format with a vocabulary trained here."""
    folder = tmp_path_factory.mktemp("bpe")
    made = tokenizers.CharBPETokenizer(lowercase=True, unk_token="[UNK]")
    made.train_from_iterator(
        CAPTIONS[:8], 90, special_tokens=["[UNK]"], min_frequency=1
    )
    made.save_model(str(folder), "bpe-16k")
    return text.load(folder, LENGTH), made


def test_shape_padding_and_truncation(trained):
    short, long = trained("cat"), trained("cat heart " * 9)
    assert short.shape == long.shape == (LENGTH,) and short.dtype == np.int32
    pad = trained.null[0]
    used = np.flatnonzero(short != pad)
    np.testing.assert_array_equal(used, np.arange(len(used)))
    assert 0 < len(used) < LENGTH and (long != pad).all()
    np.testing.assert_array_equal(trained(""), trained.null)
    np.testing.assert_array_equal(trained("CAT"), short)


@pytest.mark.parametrize(
    "line", ["日本", "ñandú", "👨‍👩‍👧 family", "Ελλάδα", "a\tb", "  "]
)
def test_nothing_is_unknown_to_bytes(trained, line):
    whole = text.TextTokenizer(trained._tokenizer, 100)
    assert whole.decode(whole(line)).strip() == line.lower().strip()


@hypothesis.given(TEXTS)
@hypothesis.settings(max_examples=100, deadline=None)
def test_our_merges_without_dropout_are_the_librarys(trained, line):
    merged = trained._with_dropout(line, 0.0, np.random.default_rng(0))
    assert merged == trained._tokenizer.encode(line).ids


@hypothesis.given(TEXTS)
@hypothesis.settings(max_examples=100, deadline=None)
def test_the_authors_files_give_the_librarys_tokens(authors, line):
    ours, made = authors
    expected = made.encode(line).ids
    assert ours._with_dropout(line, 0.0, np.random.default_rng(0)) == expected
    np.testing.assert_array_equal(ours(line)[: len(expected)], expected[:LENGTH])


def test_dropout_splits_more_the_more_there_is_of_it(trained):
    line = "grinning face with big eyes"

    def tokens(dropout, seed=0):
        return trained._with_dropout(line, dropout, np.random.default_rng(seed))

    lengths = [
        np.mean([len(tokens(p, seed)) for seed in range(50)]) for p in (0, 0.1, 0.5, 1)
    ]
    assert (np.diff(lengths) > 0).all() and lengths[-1] == len(line) + 1
    assert tokens(0.5, 3) == tokens(0.5, 3) and tokens(0.5, 3) != tokens(0.5, 4)
    for seed in range(5):
        assert trained.decode(tokens(0.5, seed)).strip() == line


def test_one_of_several_captions_is_sampled(trained):
    captions = ("cat", "heart")
    drawn = {
        tuple(trained.choose(captions, 0.0, np.random.default_rng(seed)))
        for seed in range(20)
    }
    assert drawn == {tuple(trained("cat")), tuple(trained("heart"))}
    none = trained.choose((), 0.1, np.random.default_rng(0))
    np.testing.assert_array_equal(none, trained.null)


def test_a_saved_tokenizer_is_the_same(authors, tmp_path):
    ours, _ = authors
    ours.save(tmp_path / text.FILE)
    again = text.load(tmp_path, LENGTH)
    assert again.vocab_size == ours.vocab_size
    for line in CAPTIONS:
        np.testing.assert_array_equal(again(line), ours(line))
        a, b = (t(line, 0.5, np.random.default_rng(1)) for t in (again, ours))
        np.testing.assert_array_equal(a, b)


def test_loading_and_training_errors_are_data_errors(tmp_path):
    with pytest.raises(DataError, match="rq tokenizer"):
        text.load(tmp_path / text.FILE, LENGTH)
    with pytest.raises(DataError, match="merges.txt"):
        text.load(tmp_path, LENGTH)
    (tmp_path / text.FILE).write_text("{}")
    with pytest.raises(DataError, match="not a tokenizer"):
        text.load(tmp_path, LENGTH)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a"))
    words.save(str(tmp_path / text.FILE))
    with pytest.raises(DataError, match="WordLevel"):
        text.load(tmp_path, LENGTH)
    with pytest.raises(DataError, match="no captions"):
        text.train(["", ""], 300, tmp_path / "new.json")
    with pytest.raises(DataError, match="above 256"):
        text.train(CAPTIONS, 256, tmp_path / "new.json")


def draw_for_all_pairs(parts, ranks, dropout, rng):
    """Merges as in the first version, which resumed runs must reproduce."""
    parts = list(parts)
    while len(parts) > 1:
        found = [
            (ranks[pair], place)
            for place, pair in enumerate(zip(parts, parts[1:], strict=False))
            if pair in ranks and rng.random() >= dropout
        ]
        if not found:
            break
        _, place = min(found)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


@hypothesis.given(
    st.text("grinface ", min_size=1, max_size=text.LONG),
    st.floats(0, 1),
    st.integers(0, 99),
)
@hypothesis.settings(max_examples=100, deadline=None)
def test_words_of_usual_length_use_the_draws_of_the_first_version(
    trained, word, dropout, seed
):
    ranks = trained._model[0]
    a, b = np.random.default_rng(seed), np.random.default_rng(seed)
    expected = draw_for_all_pairs(word, ranks, dropout, a)
    assert text._merge_all_pairs(list(word), ranks, dropout, b) == expected
    assert a.random() == b.random()


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_merges_from_a_heap_have_the_same_distribution(trained, dropout):
    ranks, number = trained._model[0], 2000
    counts = [
        collections.Counter(
            tuple(merge(list("Ġgrinning"), ranks, dropout, np.random.default_rng(seed)))
            for seed in range(start, start + number)
        )
        for merge, start in (
            (text._merge_all_pairs, 0),
            (text._merge_from_heap, number),
        )
    ]
    assert len(counts[0]) > 5
    difference = sum(abs(counts[0][k] - counts[1][k]) for k in counts[0] | counts[1])
    assert difference / (2 * number) < 0.1


@pytest.mark.parametrize(
    "line",
    [
        "日本の旗猫が屋根の上で寝ている" * 200,
        "日本の旗、猫が寝ている。" * 250,
        "a" * 30_000,
    ],
)
def test_long_texts_take_no_longer_a_character_than_short_ones(trained, line):
    def seconds(text):
        start = time.process_time()
        trained(text, 0.1, np.random.default_rng(0))
        return time.process_time() - start

    seconds(line)
    tenth = min(seconds(line[: len(line) // 10]) for _ in range(3))
    whole = min(seconds(line) for _ in range(3))
    assert whole < 30 * tenth + 0.02 and whole < 0.5


def test_captions_that_are_cut_are_counted(trained):
    assert trained.count_cut(["cat", "cat heart " * 9, "", "日本の旗" * 9]) == (4, 2)
    exact = text.TextTokenizer(
        trained._tokenizer, len(trained._tokenizer.encode("cat"))
    )
    assert exact.count_cut(iter(["cat", "cat cat"])) == (2, 1)
