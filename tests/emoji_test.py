# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests reading, drawing, preparing and opening the emoji."""

import pathlib

import numpy as np
import pytest

from rq.config import default
from rq.data import DataError, emoji, sources

missing = [package for path, package in emoji.PACKAGES.items() if not path.exists()]
pytestmark = pytest.mark.skipif(
    bool(missing), reason=f"needs the Debian packages {', '.join(missing)}"
)


@pytest.fixture(scope="module")
def every_emoji():
    return emoji.read_list()


def test_list_has_nine_groups_and_a_caption_each(every_emoji):
    groups = np.bincount([one.group for one in every_emoji])
    assert len(groups) == len(emoji.GROUPS) and groups.min() > 50
    assert len({one.text for one in every_emoji}) == len(every_emoji)
    assert len({one.caption for one in every_emoji}) == len(every_emoji)
    by_caption = {one.caption: one for one in every_emoji}
    assert by_caption["grinning face"].text == "\N{GRINNING FACE}"
    assert by_caption["flag: Japan"].group == emoji.GROUPS.index("Flags")


def test_sequences_are_drawn_as_one_picture(every_emoji):
    font = emoji.load_font()
    joined = [one for one in every_emoji if len(one.text) > 4][::97]
    assert len(joined) > 5
    for one in joined:
        left, _, right, _ = font.getbbox(one.text)
        assert right - left <= emoji.CANVAS, one.caption


def test_picture_is_whole_centred_and_on_white(every_emoji):
    font = emoji.load_font()
    for one in every_emoji[::301]:
        picture = emoji.draw(one.text, font)
        assert picture.shape == (emoji.SIDE, emoji.SIDE, 3)
        assert picture.min() < 200, one.caption
        assert (picture[[0, 0, -1, -1], [0, -1, 0, -1]] > 240).all(), one.caption
        rows = np.flatnonzero((picture < 230).any(axis=(1, 2)))
        assert abs(rows[0] + rows[-1] - (emoji.SIDE - 1)) <= 12, one.caption


def test_set_is_prepared_and_opened(tmp_path, monkeypatch, every_emoji):
    few = [one for one in every_emoji if one.group > 6][:30]
    monkeypatch.setattr(emoji, "read_list", lambda: few)
    monkeypatch.setattr(emoji, "VALIDATION", 5)
    data = default().data
    data.update(dict(name="emoji", dir=str(tmp_path), resolution=64, num_classes=9))
    train, validation = (sources.open_split(data, s) for s in ("train", "validation"))
    assert (len(train), len(validation)) == (25, 5)
    font = emoji.load_font()
    drawn = {emoji.draw(one.text, font).tobytes(): one.group for one in few}
    seen = [source[i] for source in (train, validation) for i in range(len(source))]
    assert {example["image"].tobytes() for example in seen} == drawn.keys()
    for example in seen:
        assert example["label"] == drawn[example["image"].tobytes()]


def test_missing_package_is_named(monkeypatch):
    nowhere = pathlib.Path("/nowhere/emoji-test.txt")
    monkeypatch.setattr(emoji, "LIST", nowhere)
    monkeypatch.setitem(emoji.PACKAGES, nowhere, "unicode-data")
    with pytest.raises(DataError, match="apt-get install .*unicode-data"):
        emoji.read_list()
