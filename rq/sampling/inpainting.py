# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Completing and editing: which codes of an image are kept, and which are resampled.

Codes are drawn in raster order, each given all that come before it. So rows below are
continued from those above; a region in the middle follows what is above it and to its
left, and meets the rest without having seen it. Models of any order draw what is kept
first (`rq.sampling.order`), so that the rest sees all of it.
"""

from __future__ import annotations

import os
import pathlib
import zipfile
import zlib
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from rq.config import ConfigError
from rq.config.image_shape import Resolution
from rq.data import augment
from rq.data.damage import DecodeError
from rq.data.decode import from_array

REGIONS = ("all", "bottom", "top", "right", "left", "center")
NUMPY = (".npy", ".npz")  # files of codes
_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
)


class Given(NamedTuple):
    """A code map of which a part is kept.

    Attributes:
      codes: int32 `[H, W, D]`.
      keep: bool `[H, W, D]`; what is False is resampled.
    """

    codes: np.ndarray
    keep: np.ndarray


class Canvas(NamedTuple):
    """An image of any size, of which the model sees the centre.

    Attributes:
      size: its height and width.
      resolution: of the model, see `given_images.read`.
    """

    size: tuple[int, int]
    resolution: Resolution


def read_mask(
    mask, rows: int, columns: int, canvas: Canvas | None = None
) -> np.ndarray:
    """Returns the positions to resample, bool `[rows, columns]`.

    Args:
      mask: 'all'; a half, 'bottom', 'top', 'right' or 'left'; the 'center', half as
        high and half as wide; or an image, a file or as `given_images.read` takes it,
        grey and bright where to resample: a position is resampled if any of its pixels
        is. Pixels that are all 0 or 1 are no and yes.
      rows, columns: H and W of the codes.
      canvas: the image, if there is one; a mask with its ratio of sides is cropped as
        it is. Any other covers what the model sees.

    Raises:
      ConfigError: where it is neither a region nor a readable image.
    """
    found = np.zeros((rows, columns), bool)
    if isinstance(mask, str) and mask in REGIONS:
        top, left = rows // 2, columns // 2
        part = {
            "all": np.s_[:, :],
            "bottom": np.s_[top:, :],
            "top": np.s_[:top, :],
            "right": np.s_[:, left:],
            "left": np.s_[:, :left],
            "center": np.s_[
                rows // 4 : rows - rows // 4, left // 2 : columns - left // 2
            ],
        }
        found[part[mask]] = True
        return found
    is_file = isinstance(mask, str | os.PathLike)
    name = f"--mask={mask}" if is_file else "the mask"
    image = _grey(mask, name)
    if canvas is not None and _same_ratio(image.shape, canvas.size):
        image = image[augment.center_part(image.shape, canvas.resolution)]
    if image.shape[0] < rows or image.shape[1] < columns:
        raise ConfigError(f"{name}: {image.shape} pixels for {rows} x {columns} places")
    for row, band in enumerate(np.array_split(image > 127, rows)):
        for column, cell in enumerate(np.array_split(band, columns, axis=1)):
            found[row, column] = cell.any()
    return found


def _grey(mask, name: str) -> np.ndarray:
    """Returns a mask as uint8 `[height, width]`; raises as `read_mask` does."""
    if isinstance(mask, str | os.PathLike):
        path = pathlib.Path(mask).expanduser()
        found: Any = None
        if path.is_file():
            found = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if found is None:
            raise ConfigError(f"{name}: neither an image nor one of {REGIONS}")
    else:
        found = np.asarray(mask.convert("L") if isinstance(mask, Image.Image) else mask)
    if found.ndim != 2:
        raise ConfigError(f"{name} has shape {found.shape}, not [H, W]")
    if np.issubdtype(found.dtype, np.integer) and found.max(initial=0) == 1:
        found = found.astype(bool)
    try:
        return from_array(found, 1)[..., 0]
    except DecodeError as error:
        raise ConfigError(f"{name}: {error}") from None


def _same_ratio(size, other) -> bool:
    """Returns whether two (height, width) have one ratio, up to a pixel."""
    (height, width), (rows, columns) = size, other
    return abs(height * columns - width * rows) <= max(*size, *other)


def make_keep(redo: np.ndarray, depth: int, keep_depth: int = 0) -> np.ndarray:
    """Returns what is kept, bool `[H, W, D]`: outside `redo` all, inside some depths.

    Args:
      redo: bool `[H, W]`, positions to resample.
      depth: D.
      keep_depth: first depths that are kept there too: the coarse picture stays.

    Raises:
      ConfigError: if nothing would be resampled, or `keep_depth` is negative.
    """
    if keep_depth < 0:
        raise ConfigError(f"--keep_depth={keep_depth}: must be 0 or more")
    keep = np.repeat(~redo[..., None], depth, axis=-1)
    keep[..., :keep_depth] = True
    if keep.all():
        raise ConfigError(
            f"nothing to resample: --keep_depth={keep_depth} of {depth} depths, "
            f"{int(redo.sum())} of {redo.size} positions masked"
        )
    return keep


def make_given(
    codes: np.ndarray, mask, keep_depth: int = 0, canvas: Canvas | None = None
) -> Given:
    """Returns what sampling completes: codes `[H, W, D]`, and which of them are kept.

    Args:
      codes: of an image.
      mask, keep_depth: where to resample, see `read_mask` and `make_keep`.
      canvas: the image, see `read_mask`.

    Raises:
      ConfigError: on a mask that does not fit.
    """
    rows, columns, depth = codes.shape
    redo = read_mask(mask, rows, columns, canvas)
    return Given(codes, make_keep(redo, depth, keep_depth))


def read_codes(path, code_shape: tuple[int, int, int], sizes) -> np.ndarray:
    """Returns a code map from a file, int32 `[H, W, D]`, checked by `check_codes`.

    Args:
      path: .npy, or .npz with the name 'codes', as sampling writes it; an array
        `[H, W, D]`, or the first of `[N, H, W, D]`.
      code_shape: the model's.
      sizes: codes in the codebook of each depth, `[D]`.

    Raises:
      ConfigError: on another shape, or codes that the model does not have.
    """
    try:
        codes = np.load(path, allow_pickle=False)
        if isinstance(codes, np.lib.npyio.NpzFile):  # whatever its name ends in
            codes = codes["codes"]
    except _UNREADABLE as error:
        raise ConfigError(f"{path}: no codes can be read ({error})") from None
    codes = codes[0] if codes.ndim == 4 and len(codes) else codes
    check_codes(codes, code_shape, sizes, str(path))
    return codes.astype(np.int32)


def check_codes(codes: np.ndarray, code_shape, sizes, name: str) -> None:
    """Checks a code map `[H, W, D]` against the codebook of each depth.

    Raises:
      ConfigError: on another shape or type, or codes that the model does not have.
    """
    if codes.shape != tuple(code_shape) or not np.issubdtype(codes.dtype, np.integer):
        raise ConfigError(
            f"{name} has {codes.dtype} {codes.shape}, not codes {tuple(code_shape)}"
        )
    for d, size in enumerate(sizes[: codes.shape[-1]]):
        lowest, highest = codes[..., d].min(), codes[..., d].max()
        if lowest < 0 or highest >= size:
            raise ConfigError(
                f"{name} has codes {lowest} to {highest} at depth {d + 1}; the model "
                f"has {size} there, 0 to {size - 1}"
            )
