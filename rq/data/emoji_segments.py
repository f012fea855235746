# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The data set `emoji_segments`: emoji over textures, each with its label map.

The pictures of `emoji`, at a random size and place, are drawn over a random texture:
stripes, squares or noise between two random colours. The source image of each is its
label map: the colour of the emoji's group where the font is opaque, black elsewhere.
The split is that of `emoji`.
"""

from __future__ import annotations

import numpy as np
import tensorflow_datasets as tfds

from rq.data.augment import resize
from rq.data.built_in import BuiltInBuilder, encode_png
from rq.data.emoji import GROUPS, SIDE, VALIDATION, draw, load_font, read_list
from rq.data.permutation import mixed_order
from rq.data.pixels import colours

# Of the background and of each group: as far apart as ten colours can be.
PALETTE = (
    "#000000",
    "#ffff00",
    "#ff0000",
    "#00ff00",
    "#ff8000",
    "#0000ff",
    "#ff00ff",
    "#00ffff",
    "#808080",
    "#ffffff",
)
SMALLEST = 40  # side of an emoji in pixels


class EmojiSegments(BuiltInBuilder):
    """The data set: images and label maps ('source') uint8 `[64, 64, 3]`."""

    name = "emoji_segments"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        picture = tfds.features.Image(shape=(SIDE, SIDE, 3), encoding_format="png")
        return self.dataset_info_from_configs(
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": picture,
                    "source": tfds.features.Image(
                        shape=(SIDE, SIDE, 3), encoding_format="png"
                    ),
                    "label": tfds.features.ClassLabel(names=GROUPS),
                    "caption": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        emoji, font = read_list(), load_font()
        order = mixed_order(len(emoji))
        return {
            "train": self._generate_examples(emoji, order[VALIDATION:], font),
            "validation": self._generate_examples(emoji, order[:VALIDATION], font),
        }

    def _generate_examples(self, emoji, indices, font):
        for index in indices:
            one = emoji[index]
            picture, map_ = compose(one.text, one.group, font, index)
            yield (
                index,
                {
                    "image": encode_png(picture),
                    "source": encode_png(map_),
                    "label": one.group,
                    "caption": one.caption,
                },
            )


def compose(text: str, group: int, font, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns an emoji over a texture and its label map, both uint8 `[64, 64, 3]`.

    Args:
      text, group: of the emoji.
      font: from `rq.data.emoji.load_font`.
      seed: of size, place and texture.
    """
    rng = np.random.default_rng(seed)
    side = int(rng.integers(SMALLEST, SIDE + 1))
    top, left = rng.integers(SIDE - side + 1, size=2)
    on_white, on_black = (
        draw(text, font, side, paper).astype(np.float32) for paper in ("white", "black")
    )
    # What is opaque looks the same on both.
    opacity = 1 - (on_white - on_black).mean(axis=-1, keepdims=True) / 255
    opacity = opacity.clip(0, 1)
    picture, labels = texture(rng), np.zeros((SIDE, SIDE), np.int32)
    place = np.s_[top : top + side, left : left + side]
    picture[place] = on_black + (1 - opacity) * picture[place]
    labels[place] = np.where(opacity[..., 0] > 0.5, group + 1, 0)
    return np.rint(picture.clip(0, 255)).astype(np.uint8), colours(PALETTE)[labels]


def texture(rng: np.random.Generator) -> np.ndarray:
    """Returns a random texture between two colours, float32 `[64, 64, 3]`, 0..255."""
    first, second = rng.uniform(0, 255, (2, 3))
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    angle, waves = rng.uniform(0, np.pi), rng.uniform(2, 8)
    phase = 2 * np.pi * rng.uniform(size=2)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    stripes = np.sin(2 * np.pi * waves * along + phase[0])
    kind = rng.integers(3)
    if kind == 0:
        mixed = (1 + stripes) / 2
    elif kind == 1:
        squares = stripes * np.sin(2 * np.pi * waves * across + phase[1])
        mixed = (1 + np.sign(squares)) / 2
    else:
        mixed = np.zeros((SIDE, SIDE))
        for cells in (4, 8, 16):
            noise = rng.uniform(size=(cells, cells, 1)).astype(np.float32)
            mixed += resize(noise, SIDE, SIDE)[..., 0] * 2 / cells
    mixed = mixed[..., None] + rng.normal(0, 0.05, (SIDE, SIDE, 1))
    return (first + (second - first) * mixed).clip(0, 255).astype(np.float32)


prepare = EmojiSegments.prepare
