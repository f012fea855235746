# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""HTML of the page's pictures and tables. Images are part of it: no files are made."""

from __future__ import annotations

import base64
import html
import io
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from rq.demo.batches import Progress

CSS = pathlib.Path(__file__).parent / "page.css"
LARGE = 64  # pixels of a side from which images in between are sent as JPEG
CHANGE_GAIN = 4  # by which changes from depth to depth are enlarged


def style_sheet(image_shape: tuple[int, int, int]) -> str:
    """Returns the page's style sheet, as HTML for its head.

    There: rules of Gradio's Blocks would hold inside of the page's container alone.

    Args:
      image_shape: (height, width, channels) of the model's images.
    """
    height, width, _ = image_shape
    ratio = f":root {{ --rq-ratio: {width} / {height}; }}"
    return f"<style>{ratio}\n{CSS.read_text()}</style>"


def source(image: np.ndarray, exact: bool = True) -> str:
    """Returns an image uint8 `[H, W, C]` as the `src` of an HTML image.

    Args:
      image: C = 1 or 3.
      exact: as PNG; otherwise large ones as JPEG.
    """
    kind = "PNG" if exact or max(image.shape[:2]) <= LARGE else "JPEG"
    file = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
        file, format=kind, quality=85
    )
    data = base64.b64encode(file.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{data}"


def _figure(image: np.ndarray | None, caption: str, exact: bool = True) -> str:
    picture = '<div class="rq-empty"></div>'
    alt = html.escape(caption, quote=True)
    if image is not None:
        picture = f'<img src="{source(image, exact)}" alt="{alt}">'
    return f"<figure>{picture}<figcaption>{html.escape(caption)}</figcaption></figure>"


def gallery(
    images: Iterable[np.ndarray | None], captions: Sequence[str], exact: bool = True
) -> str:
    """Returns images with captions; empty places where there is none yet."""
    figures = [
        _figure(image, caption, exact)
        for image, caption in zip(images, captions, strict=True)
    ]
    return f'<div class="rq-gallery">{"".join(figures)}</div>'


def status(progress: Progress, rows: int, depth: int) -> str:
    """Returns a line on how far a request is, with a bar.

    Args:
      progress: of the request.
      rows, depth: H and D of the model.
    """
    number = len(progress.images)
    begun = sum(image is not None for image in progress.images) - progress.finished
    done = progress.finished + begun * progress.rows / rows
    parts = [f"{progress.finished} of {number} images"]
    if progress.codes is not None:
        parts = [f"{number} {'images' if number > 1 else 'image'}"]
    elif progress.rows:
        parts.append(
            f"row {progress.rows} of {rows}, depth {progress.depth} of {depth}"
        )
    else:
        parts.append("waiting for the next batch")
    if progress.finished and progress.seconds:
        parts.append(
            f"{progress.seconds:.1f} s, {progress.finished / progress.seconds:.1f} "
            "images/s"
        )
    if progress.others and progress.codes is None:
        plural = "s" if progress.others > 1 else ""
        parts.append(f"{progress.others} other request{plural}")
    percent = 100 * done / number
    bar = (
        f'<div class="rq-bar" role="progressbar" aria-valuenow="{percent:.0f}">'
        f'<i style="width:{percent:.1f}%"></i></div>'
    )
    text = html.escape(" · ".join(parts))
    is_done = "true" if progress.codes is not None else "false"
    return (
        f'<div class="rq-status" data-done="{is_done}">{bar}<span>{text}</span></div>'
    )


def message(text: str) -> str:
    """Returns a line of text."""
    return f'<p class="rq-message">{html.escape(text)}</p>'


def by_depth(
    image: np.ndarray, decoded: np.ndarray, bits: np.ndarray, psnr: np.ndarray
) -> str:
    """Returns an image and its reconstruction at each depth.

    Args:
      image: uint8 `[Y, X, C]`.
      decoded: uint8 `[D, Y, X, C]`.
      bits: of the codes up to each depth.
      psnr: of the reconstructions, in decibels.
    """
    captions = [
        f"depth {d + 1} · {bits[d]:,.0f} bits · {psnr[d]:.1f} dB"
        for d in range(len(decoded))
    ]
    raw = f"as the model sees it · {image.size * 8:,} bits"
    return gallery([image, *decoded], [raw, *captions])


def code_table(
    codes: np.ndarray,
    sizes: Sequence[int],
    decoded: np.ndarray,
    row: int,
    column: int,
) -> str:
    """Returns a position's codes, and what each depth adds to the picture.

    Args:
      codes: int32 `[H, W, D]`.
      sizes: number of codes at each depth.
      decoded: uint8 `[D, Y, X, C]`, decoded up to each depth.
      row, column: of the position.
    """
    height, width, depth = codes.shape
    box = (
        f"left:{100 * column / width:g}%;top:{100 * row / height:g}%;"
        f"width:{100 / width:g}%;height:{100 / height:g}%"
    )

    def boxed(image, alt):
        return (
            f'<div class="rq-boxed"><img src="{source(image)}" alt="{alt}">'
            f'<i style="{box}"></i></div>'
        )

    lines = []
    before = np.full(decoded.shape[1:], 128, np.float32)
    for d in range(depth):
        change = decoded[d].astype(np.float32) - (before if d else 128)
        before = decoded[d].astype(np.float32)
        drawn = decoded[d] if not d else (128 + CHANGE_GAIN * change).clip(0, 255)
        size = np.sqrt(np.mean(change**2))
        note = f"± {size:.1f} levels" if d else "the first picture"
        lines.append(
            f"<tr><th>{d + 1}</th>"
            f'<td class="rq-code">{codes[row, column, d]}'
            f"<small>of {sizes[d]}</small></td>"
            f"<td>{boxed(decoded[d], f'up to depth {d + 1}')}</td>"
            f"<td>{boxed(drawn.astype(np.uint8), f'added by depth {d + 1}')}"
            f"<small>{note}</small></td>"
            f"<td>{_code_grid(codes[..., d], row, column)}</td></tr>"
        )
    return (
        '<div class="rq-scroll"><table class="rq-codes"><thead><tr><th>depth</th>'
        "<th>code here</th><th>picture so far</th>"
        f"<th>it adds (× {CHANGE_GAIN})</th><th>all codes</th></tr>"
        f"</thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _code_grid(codes: np.ndarray, row: int, column: int) -> str:
    cells = [
        "".join(
            f'<td class="rq-here">{code}</td>'
            if (y, x) == (row, column)
            else f"<td>{code}</td>"
            for x, code in enumerate(line)
        )
        for y, line in enumerate(codes)
    ]
    return (
        '<table class="rq-grid">'
        + "".join(f"<tr>{line}</tr>" for line in cells)
        + "</table>"
    )
