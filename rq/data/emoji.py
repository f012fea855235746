# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""`emoji`: 3,655 colour pictures of 9 classes with an English caption each, for TFDS.

The fully qualified emoji of Unicode's emoji-test.txt, whose groups are the classes and
whose names are the captions, drawn with the font Noto Color Emoji on white at 64 x 64.
Both come with Debian and Ubuntu; needs no download beyond these packages. 3,300 to
train on, 355 to validate with (of Unicode 15.0; other versions differ a little).
"""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw, ImageFont, features

from rq.data import DataError
from rq.data.built_in import BuiltInBuilder, encode_png, mixed_order

SIDE = 64
VALIDATION = 355
GROUPS = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)
FONT = pathlib.Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
LIST = pathlib.Path("/usr/share/unicode/emoji/emoji-test.txt")
PACKAGES = {FONT: "fonts-noto-color-emoji", LIST: "unicode-data"}
STRIKE = 109  # the one size in pixels that the font's bitmaps have
CANVAS = 136  # their width


class Emoji(NamedTuple):
    """One line of the list.

    Attributes:
      text: its characters.
      group: index into `GROUPS`.
      caption: its English name, as 'grinning face with big eyes'.
    """

    text: str
    group: int
    caption: str


class EmojiSet(BuiltInBuilder):
    """Noto Color Emoji at 64 x 64 on white, with group and caption."""

    name = "emoji"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(SIDE, SIDE, 3), encoding_format="png"
                    ),
                    "label": tfds.features.ClassLabel(names=GROUPS),
                    "caption": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        emoji = read_list()
        font = load_font()
        order = mixed_order(len(emoji))
        return {
            "train": self._generate_examples(emoji, order[VALIDATION:], font),
            "validation": self._generate_examples(emoji, order[:VALIDATION], font),
        }

    def _generate_examples(self, emoji, indices, font):
        for index in indices:
            one = emoji[index]
            yield (
                index,
                {
                    "image": encode_png(draw(one.text, font)),
                    "label": one.group,
                    "caption": one.caption,
                },
            )


def _installed(path: pathlib.Path) -> pathlib.Path:
    if not path.exists():
        raise DataError(
            f"emoji need {path}, of the Debian package {PACKAGES[path]}: "
            f"apt-get install {' '.join(PACKAGES.values())}"
        )
    return path


def read_list() -> list[Emoji]:
    """Every fully qualified emoji, in Unicode's order.

    Raises:
      DataError: where the list is not installed, naming its package.
    """
    emoji, group = [], None
    for line in _installed(LIST).read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            name = line.removeprefix("# group: ")
            group = GROUPS.index(name) if name in GROUPS else None
        elif group is not None and "; fully-qualified" in line:
            points, comment = line.split(";", 1)[0], line.split("#", 1)[1]
            # After '#': the emoji itself, the version that brought it, its name.
            _, _, caption = comment.strip().split(" ", 2)
            text = "".join(chr(int(point, 16)) for point in points.split())
            emoji.append(Emoji(text, group, caption))
    return emoji


def load_font() -> ImageFont.FreeTypeFont:
    """The font, with the shaping that joins sequences into one picture.

    Raises:
      DataError: where the font is not installed, naming its package, or where Pillow
        lacks the shaping library.
    """
    path = _installed(FONT)
    if not features.check("raqm"):
        raise DataError("emoji need a Pillow with Raqm, as its wheels have it")
    return ImageFont.truetype(path, STRIKE, layout_engine=ImageFont.Layout.RAQM)


def draw(text: str, font: ImageFont.FreeTypeFont, side: int = SIDE) -> np.ndarray:
    """An emoji on white: uint8 `[side, side, 3]`."""
    page = Image.new("RGB", (CANVAS, CANVAS), "white")
    left, top, right, bottom = font.getbbox(text)
    place = ((CANVAS - left - right) // 2, (CANVAS - top - bottom) // 2)
    ImageDraw.Draw(page).text(place, text, font=font, embedded_color=True)
    return np.asarray(page.resize((side, side), Image.Resampling.LANCZOS))


prepare = EmojiSet.prepare
