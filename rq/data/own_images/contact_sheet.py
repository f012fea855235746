# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Draws the first images of each class, to check a data set at a glance."""

from __future__ import annotations

import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rq.data.augment import center

SIDE = 64  # pixels of an image
IMAGES = 8  # per class
ROWS = 32  # classes shown
TEXT = 176  # width of the column of names in pixels
_GAP = 2


class ContactSheet:
    """Collects rows of images, one row for each of the first classes."""

    def __init__(self, names: list[str]):
        """Takes the class names in order of their numbers."""
        shown: list[str | None] = [*names[:ROWS]] or [None]
        self._rows: dict[str | None, list[np.ndarray]] = {name: [] for name in shown}
        self._names = names

    def wants(self, label: str | None) -> bool:
        """Returns whether the row of a class has room."""
        row = self._rows.get(label if self._names else None)
        return row is not None and len(row) < IMAGES

    def add(self, label: str | None, image: np.ndarray) -> None:
        """Adds an image, uint8 `[H, W, 3]`, to the row of its class."""
        row = self._rows[label if self._names else None]
        row.append(center(image, SIDE, None))

    def write(self, path: pathlib.Path) -> None:
        """Writes the picture as a PNG."""
        import matplotlib  # only for its font; it is slow to import

        step, left = SIDE + _GAP, TEXT if self._names else 0
        size = (left + IMAGES * step, max(len(self._rows), 1) * step)
        sheet = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(sheet)
        fonts = pathlib.Path(matplotlib.get_data_path()) / "fonts/ttf"
        font = ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), 13)
        for number, (name, images) in enumerate(self._rows.items()):
            top = number * step
            if name is not None:
                text = f"{number}  {name}"
                while draw.textlength(text, font) > TEXT - 8:
                    text = text[:-2] + "…"
                draw.text((4, top + SIDE // 2 - 8), text, "black", font)
            for place, image in enumerate(images):
                sheet.paste(Image.fromarray(image), (left + place * step, top))
        sheet.save(path)
