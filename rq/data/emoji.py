# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The data set `emoji`: 3,655 colour pictures in 9 classes, with English captions.

The pictures are the fully qualified emoji in Unicode's emoji-test.txt, drawn with the
font Noto Color Emoji on white at 64 x 64. The list's groups are the classes, its names
the captions. Both are Debian packages; nothing else is downloaded. 3,300 are for
training, 355 for validation (with Unicode 15.0; other versions differ a little).
"""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw, ImageFont, features

from rq.data import DataError
from rq.data.built_in import BuiltInBuilder, encode_png
from rq.data.permutation import mixed_order

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
STRIKE = 109  # the only size in pixels of the font's bitmaps
CANVAS = 136  # width of the bitmaps


class Emoji(NamedTuple):
    """An emoji in Unicode's list.

    Attributes:
      text: its characters.
      group: index into `GROUPS`.
      caption: its English name, such as 'grinning face with big eyes'.
    """

    text: str
    group: int
    caption: str


class EmojiSet(BuiltInBuilder):
    """The data set: images uint8 `[64, 64, 3]` with label (group) and caption."""

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
            f"emoji need {path} from the Debian package {PACKAGES[path]}: "
            f"apt-get install {' '.join(PACKAGES.values())}"
        )
    return path


def read_list() -> list[Emoji]:
    """Returns every fully qualified emoji, in Unicode's order.

    Raises:
      DataError: if the list is not installed. It names the package to install.
    """
    emoji, group = [], None
    for line in _installed(LIST).read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            name = line.removeprefix("# group: ")
            group = GROUPS.index(name) if name in GROUPS else None
        elif group is not None and "; fully-qualified" in line:
            points, comment = line.split(";", 1)[0], line.split("#", 1)[1]
            # After '#': the emoji, the Unicode version that added it, its name.
            _, _, caption = comment.strip().split(" ", 2)
            text = "".join(chr(int(point, 16)) for point in points.split())
            emoji.append(Emoji(text, group, caption))
    return emoji


def load_font() -> ImageFont.FreeTypeFont:
    """Loads the font with text shaping, which joins sequences into one picture.

    Raises:
      DataError: if the font (it names the package to install) or Pillow's text shaping
        library is not installed.
    """
    path = _installed(FONT)
    if not features.check("raqm"):
        raise DataError("emoji need Pillow with Raqm: install Pillow from its wheel")
    return ImageFont.truetype(path, STRIKE, layout_engine=ImageFont.Layout.RAQM)


def draw(
    text: str,
    font: ImageFont.FreeTypeFont,
    side: int = SIDE,
    paper: str = "white",
) -> np.ndarray:
    """Draws an emoji on paper of one colour and returns uint8 `[side, side, 3]`."""
    page = Image.new("RGB", (CANVAS, CANVAS), paper)
    left, top, right, bottom = font.getbbox(text)
    place = ((CANVAS - left - right) // 2, (CANVAS - top - bottom) // 2)
    ImageDraw.Draw(page).text(place, text, font=font, embedded_color=True)
    return np.asarray(page.resize((side, side), Image.Resampling.LANCZOS))


prepare = EmojiSet.prepare
