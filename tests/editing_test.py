# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Masks, and what stays of given codes."""

import cv2
import numpy as np
import pytest

from rq.config import ConfigError
from rq.data import augment
from rq.sampling import inpainting


@pytest.mark.parametrize(
    "mask, rows",
    [
        ("all", ["1111", "1111", "1111", "1111"]),
        ("bottom", ["0000", "0000", "1111", "1111"]),
        ("top", ["1111", "1111", "0000", "0000"]),
        ("right", ["0011", "0011", "0011", "0011"]),
        ("left", ["1100", "1100", "1100", "1100"]),
        ("center", ["0000", "0110", "0110", "0000"]),
    ],
)
def test_regions(mask, rows):
    expected = np.array([[c == "1" for c in row] for row in rows])
    np.testing.assert_array_equal(inpainting.read_mask(mask, 4, 4), expected)


def test_a_position_is_drawn_where_any_of_its_pixels_is_bright(tmp_path):
    image = np.zeros((64, 32), np.uint8)
    image[17, 9] = 255  # of a 4 x 4 grid in row 1, column 1
    image[48:, 24:] = 200
    image[0, 0] = 100
    cv2.imwrite(str(tmp_path / "mask.png"), image)
    expected = np.zeros((4, 4), bool)
    expected[1, 1] = expected[3, 3] = True
    found = inpainting.read_mask(str(tmp_path / "mask.png"), 4, 4)
    np.testing.assert_array_equal(found, expected)


def test_pixels_of_0_and_1_are_no_and_yes(tmp_path):
    image = np.eye(4, dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "mask.png"), image)
    for mask in (str(tmp_path / "mask.png"), tmp_path / "mask.png", image, image > 0):
        np.testing.assert_array_equal(inpainting.read_mask(mask, 4, 4), image > 0)


@pytest.mark.parametrize("size", [(108, 192), (64, 96), (192, 108)])
def test_a_mask_with_the_sides_of_the_image_is_cropped_as_it_is(size):
    high, wide = size
    side, longer = min(size), max(size)
    image = np.zeros(size, np.uint8)
    start = (longer - side) // 2 + side // 4  # the second of four columns or rows
    part = slice(start, start + side // 4)
    image[(part, slice(0, 2)) if high > wide else (slice(0, 2), part)] = 255
    seen = augment.center(image[..., None], 32, None)[..., 0] > 127
    canvas = inpainting.Canvas((size[0] * 2, size[1] * 2), 32)
    found = inpainting.read_mask(image, 4, 4, canvas)
    expected = np.zeros((4, 4), bool)
    expected[(1, 0) if high > wide else (0, 1)] = True
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, inpainting.read_mask(seen, 4, 4))
    square = np.kron(expected, np.ones((8, 8), np.uint8)) * 255  # of what is seen
    np.testing.assert_array_equal(inpainting.read_mask(square, 4, 4, canvas), expected)


def test_inside_the_mask_the_first_depths_may_stay():
    redo = np.array([[False, True]])
    keep = inpainting.make_keep(redo, depth=3, keep_depth=2)
    np.testing.assert_array_equal(keep, [[[1, 1, 1], [1, 1, 0]]])


@pytest.mark.parametrize("redo, keep_depth", [(False, 0), (True, 3), (True, 4)])
def test_a_mask_of_nothing_is_refused(redo, keep_depth):
    with pytest.raises(ConfigError, match="nothing to resample"):
        inpainting.make_keep(np.full((2, 2), redo), 3, keep_depth)


def test_a_negative_number_of_depths_is_refused():
    with pytest.raises(ConfigError, match="0 or more"):
        inpainting.make_keep(np.ones((2, 2), bool), 3, -1)


@pytest.mark.parametrize("mask", ["middle", "no.png", __file__])
def test_what_is_no_mask_is_refused(mask):
    with pytest.raises(ConfigError, match="neither an image nor one of"):
        inpainting.read_mask(mask, 4, 4)


def test_a_mask_smaller_than_the_codes_is_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "mask.png"), np.zeros((3, 8), np.uint8))
    with pytest.raises(ConfigError, match="pixels for"):
        inpainting.read_mask(str(tmp_path / "mask.png"), 4, 4)


def test_codes_of_a_file(tmp_path):
    codes = np.arange(24).reshape(2, 3, 4) % 7
    np.save(tmp_path / "one.npy", codes.astype(np.uint16))
    np.savez(tmp_path / "many.npz", codes=np.stack([codes, codes * 0]))
    for name in ("one.npy", "many.npz"):
        found = inpainting.read_codes(tmp_path / name, (2, 3, 4), [7] * 4)
        np.testing.assert_array_equal(found, codes)
        assert found.dtype == np.int32


@pytest.mark.parametrize("names", [("a.npz", "a.npy"), ("a.npy", "a.npz")])
def test_codes_are_read_whatever_the_name_ends_in(tmp_path, names):
    codes = np.arange(24).reshape(2, 3, 4) % 7
    before, after = (tmp_path / name for name in names)
    if names[0] == "a.npz":
        np.savez(before, codes=codes)
    else:
        np.save(before, codes)
    before.rename(after)
    np.testing.assert_array_equal(
        inpainting.read_codes(after, (2, 3, 4), [7] * 4), codes
    )


@pytest.mark.parametrize(
    "name, array, message",
    [
        ("a.npy", np.zeros((2, 3, 3), int), "not codes"),
        ("a.npy", np.zeros((2, 3, 4)), "not codes"),
        ("a.npy", np.full((2, 3, 4), 7), "depth 1; the model has 7 there"),
        ("a.npy", np.full((2, 3, 4), -1), "codes -1 to -1 at depth 1"),
        ("a.npy", np.full((2, 3, 4), [6, 6, 6, 5]), "depth 4; the model has 5 there"),
        ("a.npy", np.full((2, 3, 4), [6, 7, 6, 4]), "depth 2; the model has 7 there"),
        ("a.npz", None, "no codes can be read"),
        ("missing.npy", None, "no codes can be read"),
        ("damaged.npz", None, "no codes can be read"),
    ],
)
def test_codes_that_do_not_fit_are_refused(tmp_path, name, array, message):
    path = tmp_path / name
    if array is not None:
        np.save(path, array)
    elif name == "a.npz":
        np.savez(path, other=np.zeros(3))
    elif name == "damaged.npz":
        codes = np.random.default_rng(0).integers(0, 5, (2, 3, 4))
        np.savez_compressed(path, codes=codes)
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 255
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        inpainting.read_codes(path, (2, 3, 4), (7, 7, 7, 5))
