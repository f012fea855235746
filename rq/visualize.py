# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Draws pictures of images and codes as uint8 arrays `[H, W, 3]`.

Small images are enlarged by an integer factor, by repeating pixels. `save_png` writes a
picture to a file. Matplotlib takes a third of a second to import, and sampling draws
only grids, so the functions that need it import it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont

from rq.data import pixels
from rq.metrics import code_usage as code_metrics
from rq.metrics.image_quality import psnr
from rq.parallel import atomic_files

TILE = 96  # small images are enlarged up to this side
WIDTH = 1280  # unless the picture would become wider than this
GAP = 3  # white pixels between images
MARGIN = 12
FONT_SIZE = 16
INK = (40, 40, 40)
PAPER = 255
ERROR_RANGE = 0.5  # largest error in error maps, for pixels in [-1, 1]


def to_uint8(images) -> np.ndarray:
    """Converts pixels in [-1, 1] to 0..255, clipped; returns uint8 unchanged.

    Raises:
      ValueError: if pixels are not finite, or integers other than uint8.
    """
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    if np.issubdtype(images.dtype, np.integer):
        raise ValueError(f"pixels must be uint8 or floats, not {images.dtype}")
    images = images.astype(np.float32)
    if not np.isfinite(images).all():
        raise ValueError("images have pixels that are not finite")
    return pixels.to_uint8(images)


def save_png(path, image: np.ndarray) -> None:
    """Writes a uint8 picture `[H, W, 3]` atomically; creates its folder."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_files.atomic_write(path) as temporary, temporary.open("wb") as file:
        Image.fromarray(image).save(file, format="PNG")


def grid(images, columns: int) -> np.ndarray:
    """Draws images in a grid, row by row.

    Args:
      images: `[N, H, W, C]`, uint8 or floats in [-1, 1], C = 1 or 3, N at least 1.
      columns: images per row; the last row may have fewer.

    Returns:
      uint8 `[H', W', 3]`.

    Raises:
      ValueError: if `images` has another shape, or there are no images or columns.
    """
    tiles = _tiles(images)
    if columns < 1:
        raise ValueError(f"at least one column, not {columns}")
    columns = min(columns, len(tiles))
    return _arrange(_enlarge(tiles, columns), columns)


def sample_grid(
    images, columns: int, row_names: Sequence[str] | None = None, title: str = ""
) -> np.ndarray:
    """Draws a `grid` with row names on the left and a title above.

    Args:
      images: `[N, H, W, C]`, uint8 or floats in [-1, 1].
      columns: images per row.
      row_names: one name for each row, such as the class; may be None.
      title: one line; may be empty.

    Raises:
      ValueError: as `grid`, and if there is not one name for each row.
    """
    picture = grid(images, columns)
    rows = -(-len(images) // columns)
    pitch = (picture.shape[0] + GAP) / rows
    lines = []
    if row_names is not None:
        if len(row_names) != rows:
            raise ValueError(f"{len(row_names)} names for {rows} rows")
        lines = [
            (name, (row + 0.5) * pitch - GAP / 2) for row, name in enumerate(row_names)
        ]
    return _annotate(picture, title=title, row_labels=lines)


def reconstructions(originals, by_depth) -> np.ndarray:
    """Draws a row for each image: the original, depths 1, ..., D, and the error.

    Above each depth is the mean PSNR of the images shown. The error is the absolute
    error at depth D, averaged over channels, from black for 0 to bright yellow for
    `ERROR_RANGE` or more.

    Args:
      originals: `[N, H, W, C]` in [-1, 1].
      by_depth: `[D, N, H, W, C]` in [-1, 1], partial decodings (paper section 3.1).

    Raises:
      ValueError: if the shapes do not match.
    """
    originals, by_depth = np.asarray(originals), np.asarray(by_depth)
    if by_depth.ndim != 5 or by_depth.shape[1:] != originals.shape:
        raise ValueError(
            f"reconstructions {by_depth.shape} and originals {originals.shape} must "
            "be [D, N, H, W, C] and [N, H, W, C]"
        )
    columns = 2 + len(by_depth)
    error = error_map(originals, by_depth[-1])
    images = [*map(_tiles, [originals, *by_depth]), error]
    tiles = np.stack(images, axis=1).reshape(-1, *error.shape[1:])
    picture = _arrange(_enlarge(tiles, columns), columns)
    pitch = (picture.shape[1] + GAP) / columns
    labels = ["original\n"]
    for d, outputs in enumerate(by_depth):
        score = np.mean(psnr(originals, np.clip(outputs, -1.0, 1.0)))
        labels.append(f"depth {d + 1}\n{score:.1f} dB")
    labels.append("error\n")
    places = [
        (text, (column + 0.5) * pitch - GAP / 2) for column, text in enumerate(labels)
    ]
    return _annotate(picture, column_labels=places)


def error_map(a, b) -> np.ndarray:
    """Draws the error of two image batches `[N, H, W, C]` as uint8 `[N, H, W, 3]`."""
    from matplotlib import colormaps

    error = np.mean(np.abs(np.asarray(a) - np.asarray(b)), axis=-1)
    return colormaps["inferno"](np.minimum(error / ERROR_RANGE, 1), bytes=True)[..., :3]


def code_usage(counts: Sequence[np.ndarray]) -> np.ndarray:
    """Draws a histogram of the codes at each depth, most frequent first.

    The scale is logarithmic and relative to the uniform frequency (the dashed line).
    Unused codes leave empty space on the right.

    Args:
      counts: D arrays `[K_d]`, as from `rq.metrics.code_usage.histogram`.

    Raises:
      ValueError: if a depth has no codes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

    statistics = code_metrics.statistics(counts)
    curves = [np.sort(np.asarray(c) / np.mean(c))[::-1] for c in counts]
    lowest = min(curve[curve > 0].min() for curve in curves) / 1.5
    highest = max(curve.max() for curve in curves) * 1.5
    columns = min(len(curves), 4)
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.0 * rows + 0.4), dpi=100, layout="tight")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for d, axis in enumerate(axes.flat):
        if d >= len(curves):
            axis.axis("off")
            continue
        size = len(curves[d])
        axis.stairs(
            np.maximum(curves[d], lowest), baseline=lowest, fill=True, color="#3b6ea5"
        )
        axis.axhline(1.0, color="#c0504d", linestyle="--", linewidth=1)
        axis.set_title(
            f"depth {d + 1}: {statistics['used'][d]:,} of {size:,} used\n"
            f"perplexity {statistics['perplexity'][d]:,.1f}",
            fontsize=11,
        )
        axis.set_xlim(0, size)
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axis.set_xlabel("codes, most frequent first")
        axis.set_yscale("log")
        axis.set_ylim(lowest, highest)
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        if d % columns == 0:
            axis.set_ylabel("frequency / uniform")
        axis.spines[["top", "right"]].set_visible(False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _tiles(images) -> np.ndarray:
    """Returns images as uint8 `[N, H, W, 3]`."""
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
        raise ValueError(f"images must be [N, H, W, 1 or 3], not {images.shape}")
    images = to_uint8(images)
    return np.broadcast_to(images, (*images.shape[:3], 3))


def _enlarge(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Enlarges tiles by an integer factor."""
    side = max(tiles.shape[1:3])
    factor = max(1, min(TILE // side, WIDTH // (columns * side)))
    return tiles.repeat(factor, axis=1).repeat(factor, axis=2)


def _arrange(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Places tiles `[N, H, W, 3]` on white in rows, with gaps between them."""
    number, height, width, _ = tiles.shape
    rows = -(-number // columns)
    down, across = height + GAP, width + GAP
    picture = np.full((rows * down - GAP, columns * across - GAP, 3), PAPER, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * down, index % columns * across
        picture[top : top + height, left : left + width] = tile
    return picture


def _annotate(picture, title="", row_labels=(), column_labels=()) -> np.ndarray:
    """Adds margins and text; labels are (text, position of their centre)."""
    font = ImageFont.load_default(FONT_SIZE)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))

    def size(text):
        left, top, right, bottom = measure.multiline_textbbox((0, 0), text, font)
        return right - min(left, 0), bottom - min(top, 0)

    left = MARGIN + max((size(text)[0] + MARGIN for text, _ in row_labels), default=0)
    heading = size(title)[1] + MARGIN if title else 0
    header = max((size(text)[1] + MARGIN for text, _ in column_labels), default=0)
    top = MARGIN + heading + header
    height, width = picture.shape[:2]
    # Column labels may exceed their columns, and the title the picture.
    right = max(
        [width, size(title)[0]]
        + [round(centre + size(text)[0] / 2) for text, centre in column_labels]
    )
    page = Image.new("RGB", (left + right + MARGIN, top + height + MARGIN), "white")
    page.paste(Image.fromarray(picture), (left, top))
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((left, MARGIN), title, INK, font)
    for text, centre in row_labels:
        place = (left - MARGIN, top + centre)
        draw.text(place, text, INK, font, anchor="rm")
    for text, centre in column_labels:
        place = (left + centre, top - MARGIN / 2)
        draw.multiline_text(place, text, INK, font, anchor="md", align="center")
    return np.asarray(page)
