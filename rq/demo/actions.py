# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""What the page's buttons do: functions of what users enter, without any layout.

They raise ConfigError, DataError or Busy, whose messages are for the user.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from rq.config import ConfigError
from rq.data import pixels
from rq.demo import inputs, markup
from rq.demo.batches import Batches, Progress
from rq.demo.previews import Previews
from rq.library import Model
from rq.metrics.image_quality import psnr
from rq.sampling import inpainting
from rq.sampling.inpainting import Given


class Shown(NamedTuple):
    """Images that a user sees, for other parts of the page.

    Attributes:
      codes: int32 `[N, H, W, D]`.
      names: of each.
    """

    codes: np.ndarray
    names: list[str]


class Update(NamedTuple):
    """What changes on the page while samples are drawn.

    Attributes:
      status, gallery: HTML.
      shown: the images when all are finished, otherwise None.
    """

    status: str
    gallery: str
    shown: Shown | None


class Actions:
    """Answers the page's events with a model."""

    def __init__(
        self,
        model: Model,
        previews: Previews,
        batches: Batches | None,
        max_images: int,
    ):
        """Takes the model.

        Args:
          model: of the page.
          previews: decodes its codes.
          batches: draws its samples; None of a model without a transformer.
          max_images: that a user may ask for at once.
        """
        self.model, self.max_images = model, max_images
        self._previews, self._batches = previews, batches
        self.rqvae = model.models.rqvae
        self.height, self.width, self.depth = self.rqvae.code_shape

    def sample(
        self,
        classes: str,
        texts: str,
        number: Any,
        options: Mapping[str, Any],
        given: Given | None = None,
    ) -> Iterator[Update]:
        """Yields what changes while samples are drawn.

        Args:
          classes: separated by commas.
          texts: one a line.
          number: of images.
          options: of sampling, by name.
          given: codes that are kept.
        """
        if self._batches is None:
            raise ConfigError("this model has no RQ-Transformer: it cannot sample")
        number = inputs.whole_number(number, "the number", 1, self.max_images)
        wanted, names = inputs.make_wanted(
            self.model,
            inputs.read_classes(classes),
            inputs.read_texts(texts),
            number,
            options,
            given,
        )
        for progress in self._batches.submit(wanted).progress():
            yield self._update(progress, names)

    def _update(self, progress: Progress, names: list[str]) -> Update:
        codes = progress.codes
        return Update(
            markup.status(progress, self.height, self.depth),
            markup.gallery(progress.images, names, exact=codes is not None),
            None if codes is None else Shown(codes, names),
        )

    def complete(
        self,
        base: np.ndarray | None,
        cells: str,
        keep_depth: Any,
        classes: str,
        texts: str,
        number: Any,
        options: Mapping[str, Any],
    ) -> Iterator[Update]:
        """Yields what changes while marked positions of an image are drawn.

        Args:
          base: codes int32 `[H, W, D]`; None: there is no image yet.
          cells: '0' or '1' of each position; '1': is drawn.
          keep_depth: first depths that are kept there.
          classes, texts, number, options: see `sample`.
        """
        if base is None:
            raise ConfigError("there is no image: upload one, or take a generated one")
        if len(cells) != self.height * self.width or set(cells) - {"0", "1"}:
            raise ConfigError("the mask does not fit the image")
        if "1" not in cells:
            raise ConfigError("nothing is marked: draw over what is to be made anew")
        redo = np.asarray([cell == "1" for cell in cells])
        redo = redo.reshape(self.height, self.width)
        keep_depth = inputs.whole_number(
            keep_depth, "depths to keep", 0, self.depth - 1
        )
        keep = inpainting.make_keep(redo, self.depth, keep_depth)
        yield from self.sample(classes, texts, number, options, Given(base, keep))

    def region(self, name: str) -> str:
        """Returns the cells of a region of `inpainting.REGIONS`; '' for none."""
        if name not in inpainting.REGIONS:
            return "0" * (self.height * self.width)
        redo = inpainting.read_mask(name, self.height, self.width)
        return "".join("01"[int(x)] for x in redo.ravel())

    def encode(self, image: np.ndarray) -> np.ndarray:
        """Returns the codes int32 `[H, W, D]` of an image uint8 `[Y, X, C]`."""
        return self.model.encode(image)[0]

    def picture(self, codes: np.ndarray) -> str:
        """Returns the image of codes `[H, W, D]` as the `src` of an HTML image."""
        return markup.source(self._previews.decode(codes[None], self.depth)[0])

    def at_depth(self, shown: Shown | None, depth: Any) -> str:
        """Returns the gallery of images, decoded up to a depth."""
        if shown is None:
            return ""
        depth = inputs.whole_number(depth, "the depth", 1, self.depth)
        return markup.gallery(self._previews.decode(shown.codes, depth), shown.names)

    def reconstruct(self, image: np.ndarray) -> tuple[str, Shown]:
        """Returns HTML of an image at every depth, bits and PSNR; and its codes."""
        codes = self.encode(image)
        decoded = self._by_depth(codes)
        shape = decoded.shape[1:]
        original = image if shape[-1] == 3 else image[..., :1]
        original = original.reshape(shape)
        positions = self.height * self.width
        bits = positions * np.cumsum(np.log2(self.rqvae.sizes))
        scores = psnr(
            pixels.to_float(np.broadcast_to(original, decoded.shape)),
            pixels.to_float(decoded),
        )
        html = markup.by_depth(original, decoded, bits, scores)
        return html, Shown(codes[None], ["the uploaded image"])

    def codes(self, shown: Shown | None, number: Any, row: Any, column: Any) -> str:
        """Returns HTML of a position's codes, and of what each depth adds.

        Args:
          shown: images.
          number, row, column: which of them, and where, from 1.
        """
        if shown is None:
            return markup.message("Generate, complete or upload an image first.")
        image = inputs.whole_number(number, "the image", 1, len(shown.codes)) - 1
        y = inputs.whole_number(row, "the row", 1, self.height) - 1
        x = inputs.whole_number(column, "the column", 1, self.width) - 1
        codes = shown.codes[image]
        return markup.code_table(codes, self.rqvae.sizes, self._by_depth(codes), y, x)

    def _by_depth(self, codes: np.ndarray) -> np.ndarray:
        """Returns images uint8 `[D, Y, X, C]` of codes, decoded up to each depth."""
        depths = np.arange(1, self.depth + 1)[:, None, None]
        return self._previews.decode(
            np.broadcast_to(codes, (self.depth, *codes.shape)),
            np.broadcast_to(depths, (self.depth, self.height, self.width)),
        )
