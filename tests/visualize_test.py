# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests that pictures contain all pixels, and that invalid inputs are errors."""

import numpy as np
import pytest
from PIL import Image

from rq import visualize


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def contains(picture, image):
    """Returns whether a picture contains an image `[H, W, 3]`, pixel for pixel."""
    windows = np.lib.stride_tricks.sliding_window_view(picture, image.shape)[
        ..., 0, :, :, :
    ]
    corners = windows[:, :, 0, 0] == image[0, 0]
    return any(
        np.array_equal(windows[y, x], image) for y, x in np.argwhere(corners.all(-1))
    )


def test_to_uint8_inverts_the_scaling_to_plus_minus_one_and_clips():
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(
        visualize.to_uint8(levels.astype(np.float32) / 127.5 - 1), levels
    )
    np.testing.assert_array_equal(visualize.to_uint8([-1.5, 1.5]), [0, 255])
    np.testing.assert_array_equal(visualize.to_uint8(levels), levels)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [(np.array([np.nan]), "not finite"), (np.array([3]), "not int64")],
)
def test_to_uint8_rejects_invalid_pixels(pixels, message):
    with pytest.raises(ValueError, match=message):
        visualize.to_uint8(pixels)


@pytest.mark.parametrize("side", [32, 96, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_grid_holds_every_image_enlarged_by_a_whole_factor(side, channels):
    images = noise(5, side, side, channels)
    picture = visualize.grid(images, columns=3)
    factor = max(1, visualize.TILE // side)
    pitch = side * factor + visualize.GAP
    assert picture.dtype == np.uint8
    assert picture.shape == (2 * pitch - visualize.GAP, 3 * pitch - visualize.GAP, 3)
    for index, image in enumerate(images):
        top, left = index // 3 * pitch, index % 3 * pitch
        tile = picture[top : top + side * factor, left : left + side * factor]
        np.testing.assert_array_equal(
            tile[::factor, ::factor], np.broadcast_to(image, (side, side, 3))
        )
    assert (picture[pitch:, 2 * pitch :] == 255).all()  # the place of a sixth image


def test_grid_of_many_columns_stays_narrow():
    assert visualize.grid(noise(40, 32, 32, 1), columns=40).shape[1] <= 40 * (32 + 3)


@pytest.mark.parametrize(
    ("shape", "columns", "message"),
    [
        ((2, 8, 8), 2, r"\(2, 8, 8\)"),
        ((2, 8, 8, 2), 2, r"\(2, 8, 8, 2\)"),
        ((0, 8, 8, 1), 2, r"\(0, 8, 8, 1\)"),
        ((2, 8, 8, 1), 0, "one column, not 0"),
    ],
)
def test_grid_rejects_other_shapes(shape, columns, message):
    with pytest.raises(ValueError, match=message):
        visualize.grid(np.zeros(shape, np.float32), columns)


def test_sample_grid_puts_names_and_title_around_an_unchanged_grid():
    images = noise(4, 32, 32, 1)
    plain = visualize.grid(images, columns=2)
    bare = visualize.sample_grid(images, 2)
    named = visualize.sample_grid(images, 2, ["0", "church"])
    titled = visualize.sample_grid(images, 2, ["0", "church"], title="samples " * 9)
    for picture in (bare, named, titled):
        assert contains(picture, plain)
    assert bare.shape[1] < named.shape[1] < titled.shape[1]
    assert named.shape[0] < titled.shape[0]
    with pytest.raises(ValueError, match="3 names for 2 rows"):
        visualize.sample_grid(images, 2, ["0", "1", "2"])


def test_reconstructions_are_in_a_row_after_their_original():
    originals = noise(2, 32, 32, 1).astype(np.float32) / 127.5 - 1
    by_depth = np.stack([originals * 0.2, originals * 0.5, originals * 0.9])
    picture = visualize.reconstructions(originals, by_depth)
    for n in range(2):
        row = np.stack([originals[n], *by_depth[:, n]])
        assert contains(picture, visualize.grid(row, columns=4))
    with pytest.raises(ValueError, match=r"\(3, 2, 32, 32, 1\)"):
        visualize.reconstructions(originals[:1], by_depth)


@pytest.mark.parametrize("depth", [1, 4, 6])
def test_code_usage_draws_a_panel_for_each_depth(depth):
    counts = [np.arange(16 + d) for d in range(depth)]
    picture = visualize.code_usage(counts)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert picture.shape[1] == 360 * min(depth, 4)
    blue = (picture == (0x3B, 0x6E, 0xA5)).all(-1)
    columns = np.flatnonzero(blue.any(0))
    panels = 1 + np.sum(np.diff(columns) > 20)
    assert panels == min(depth, 4)
    with pytest.raises(ValueError, match="no codes at depth 1"):
        visualize.code_usage([np.zeros(4, int)])


def test_save_png_makes_the_folder_and_keeps_every_pixel(tmp_path):
    picture = noise(7, 9, 3)
    path = tmp_path / "new" / "picture.png"
    visualize.save_png(path, picture)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), picture)
