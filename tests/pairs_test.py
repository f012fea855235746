# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Pairs of images of one's own and of the font; how their label maps are measured."""

import os

import cv2
import numpy as np
import pytest
from files_test import encoded, section, write

from rq.data import (
    DataError,
    emoji,
    emoji_segments,
    loader,
    source_images,
    sources,
)
from rq.data.augment import AUGMENTATIONS
from rq.data.own_images import partners, prepared
from rq.data.own_images.found import Found
from rq.data.own_images.inventory import Inventory
from rq.data.pixels import colours, nearest_labels
from rq.metrics import segmentation

FONT = emoji.FONT.exists() and emoji.LIST.exists()


def pairs(tmp_path, **changes):
    """Returns the `data` section of pairs of folders, prepared below `tmp_path`."""
    return section(
        tmp_path / "images",
        tmp_path,
        source="pairs",
        source_path=str(tmp_path / "maps"),
        **changes,
    )


def write_pairs(tmp_path, numbers, without=()):
    """Writes images k, and source images 100 + k in other formats."""
    for k in numbers:
        write(tmp_path / f"images/cat/{k}.jpg", encoded(k))
        if k not in without:
            write(tmp_path / f"maps/cat/{k}.png", encoded(100 + k))


@pytest.mark.parametrize("swapped", [False, True])
def test_two_folders_of_equal_names_are_pairs(tmp_path, swapped):
    write_pairs(tmp_path, range(6))
    data = pairs(tmp_path, swap_pairs=swapped, augment="none", resolution=24)
    sources.prepare(data)
    found = []
    for split in ("train", "validation"):
        opened = sources.open_split(data, split, paired=True)
        found += list(loader.in_order(opened, data, 1, paired=True))
    assert len(found) == 6
    images = {k: decode_of(k) for k in (*range(6), *range(100, 106))}
    numbers = set()
    for batch in found:
        given = [nearest(batch[name][0], images) for name in ("image", "source")]
        first, second = reversed(given) if swapped else given
        assert second == first + 100
        numbers.add(first)
    assert numbers == set(range(6))
    alone = sources.open_split(data, "train")
    assert "source" not in alone[0]


def decode_of(number):
    from rq.data.decode import decode

    return decode(encoded(number), 3)


def nearest(image, images):
    """Returns the number of the image with the same pixels."""
    return next(k for k, x in images.items() if np.array_equal(image, x))


def test_names_are_compared_in_one_unicode_form_and_the_first_of_two_is_used(tmp_path):
    write_pairs(tmp_path, range(4))
    write(tmp_path / "images/cat/caf\u00e9.jpg", encoded(5))
    write(tmp_path / "maps/cat/cafe\u0301.png", encoded(105))
    write(tmp_path / "maps/cat/0.webp", encoded(9))
    for name in (b"caf\xe9.png", b"caf\xe9.webp"):  # no Unicode
        write(tmp_path / "maps/cat" / os.fsdecode(name), encoded(9))
    report = sources.prepare(pairs(tmp_path))
    assert sum(report["kept"].values()) == 5 and report["left_out"] == 0
    second = "second source images of a name, not used: 2"
    assert rf"{second} (cat/0.webp, cat/caf\xe9.webp)" in report["notes"]


def test_of_one_name_with_two_suffixes_each_has_its_own_source_image(tmp_path):
    write_pairs(tmp_path, range(2))
    images = {}
    for number, name in enumerate(("b.jpg", "b.png", "b.webp"), 5):
        kind = "PNG" if name == "b.png" else "JPEG"
        write(tmp_path / "images/cat" / name, encoded(number, kind=kind))
        images[name] = tmp_path / "maps/cat" / name
    for name in ("b.png", "b.jpg"):
        write(images[name], name.encode())
    inventory = Inventory()
    found = [Found(f"cat/{name}", images[name].read_bytes) for name in sorted(images)]
    paired = partners.with_sources(found, str(tmp_path / "maps"), inventory)
    sources_of = {image.name: image.source() for image in paired}
    assert sources_of == {
        "cat/b.jpg": b"b.jpg",
        "cat/b.png": b"b.png",
        "cat/b.webp": b"b.jpg",  # the first one of its name
    }


def test_images_without_a_source_image_are_counted_and_named(tmp_path):
    write_pairs(tmp_path, range(8), without=(3, 5))
    write(tmp_path / "maps/cat/99.png", encoded(7))
    write(tmp_path / "images/cat/6.jpg", encoded(6))
    write(tmp_path / "maps/cat/6.png", b"no image")
    write(tmp_path / "maps/cat/7.png", encoded(7, side=10, kind="PNG"))
    report = sources.prepare(pairs(tmp_path))
    assert sum(report["kept"].values()) == 5 and report["left_out"] == 3
    assert report["reasons"] == {"no source image of its name": 2, "source image": 1}
    assert {"cat/3.jpg", "cat/5.jpg", "cat/6.jpg"} == set(report["files_left_out"])
    assert "source images without an image: 1 (cat/99)" in report["notes"]


def test_a_source_image_of_another_shape_is_left_out(tmp_path):
    write_pairs(tmp_path, range(5))
    wide = np.zeros((12, 24, 3), np.uint8)
    from rq.data.built_in import encode_png

    write(tmp_path / "maps/cat/2.png", encode_png(wide).getvalue())
    report = sources.prepare(pairs(tmp_path))
    assert report["files_left_out"] == {
        "cat/2.jpg": "source image: another ratio of sides: 12 x 24 for 24 x 24"
    }


@pytest.mark.parametrize(
    ("folder", "message"),
    [("maps", "none of 4 images has a source image in"), ("none", "no such folder")],
)
def test_folders_without_any_pair_are_refused(tmp_path, folder, message):
    write_pairs(tmp_path, range(4), without=range(4))
    write(tmp_path / "maps/other.png", encoded(0))
    data = pairs(tmp_path)
    data.source_path = str(tmp_path / folder)
    with pytest.raises(DataError, match=message):
        sources.prepare(data)


def test_a_table_has_a_column_of_source_images(tmp_path):
    rows = ["file\tsource\tcaption"]
    for k in range(5):
        write(tmp_path / f"images/{k}.png", encoded(k))
        write(tmp_path / f"images/maps/{k}.png", encoded(100 + k))
        rows.append(f"{k}.png\tmaps/{k}.png" + (f"\tpicture {k}" if k else ""))
    write(tmp_path / "images/table.tsv", "\n".join(rows))
    data = section(
        tmp_path / "images/table.tsv", tmp_path, name="tsv", source="pairs", holdout=1
    )
    report = sources.prepare(data)
    assert sum(report["kept"].values()) == 5 and report["images_with_captions"] == 4
    example, _ = sources.open_split(data, "train", paired=True).read(0)
    assert example["source"].shape == (24, 24, 3)


def test_a_second_source_image_in_a_table_is_counted_and_named(tmp_path):
    rows = []
    for k in range(4):
        write(tmp_path / f"images/{k}.png", encoded(k))
        rows.append(f"{k}.png\t{k}.png\tpicture {k}")
    rows += ["1.png\t2.png\tanother", "1.png\t1.png\ta second caption"]
    write(tmp_path / "images/table.tsv", "\n".join(rows))
    data = section(tmp_path / "images/table.tsv", tmp_path, name="tsv", source="pairs")
    report = sources.prepare(data)
    assert sum(report["kept"].values()) == 4
    second = "second source images of a name, not used: 1"
    assert rf"{second} (1.png 2.png)" in report["notes"]
    lines = []
    for split in ("train", "validation"):
        opened = sources.open_split(data, split, paired=True)
        lines += [tuple(opened.read(k)[1]) for k in range(len(opened))]
    assert ("picture 1", "a second caption") in lines


def test_the_name_of_a_prepared_set_depends_on_its_sources(tmp_path):
    data = pairs(tmp_path)
    names = {prepared.set_name(data)}
    data.source_path = str(tmp_path / "others")
    names.add(prepared.set_name(data))
    data.source, data.source_path = "none", ""
    names.add(prepared.set_name(data))
    assert len(names) == 3


def test_a_set_without_source_images_has_no_pairs(data_dir):
    data = section("", data_dir, name="digits", dir=str(data_dir))
    data.source, data.channels = "pairs", 1
    with pytest.raises(DataError, match="digits has no images 'source'"):
        sources.open_split(data, "train", paired=True)


@pytest.mark.skipif(not FONT, reason="needs the font")
def test_an_emoji_over_a_texture_has_its_label_map():
    font, one = emoji.load_font(), emoji.read_list()[0]
    picture, labels = emoji_segments.compose(one.text, one.group, font, seed=5)
    again, _ = emoji_segments.compose(one.text, one.group, font, seed=5)
    np.testing.assert_array_equal(picture, again)
    palette = colours(emoji_segments.PALETTE)
    found = nearest_labels(labels, palette)
    np.testing.assert_array_equal(palette[found], labels)
    assert set(np.unique(found)) == {0, one.group + 1}
    plain = emoji.draw(one.text, font)
    share = (found > 0).mean()
    assert 0.3 * (plain < 255).any(-1).mean() < share < 1
    assert picture[found == 0].std() > 5  # the background is no single colour


# Metrics of label maps


def test_mean_iou_and_pixel_accuracy_are_those_by_hand():
    true = np.array([[0, 0, 1], [1, 2, 2]])
    made = np.array([[0, 1, 1], [1, 2, 0]])
    counts = segmentation.confusion(true, made, 4)
    np.testing.assert_array_equal(counts[:3, :3], [[1, 1, 0], [0, 2, 0], [1, 0, 1]])
    np.testing.assert_allclose(segmentation.iou(counts), [1 / 3, 2 / 3, 1 / 2, np.nan])
    found = segmentation.statistics(counts)
    assert found == pytest.approx({"mIoU": 0.5, "pixel accuracy": 4 / 6})


def test_colours_of_grey_maps_are_those_of_grey_images():
    palette = ("#000000", "#ff0000", "#808080")
    image = colours(palette)[None]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    np.testing.assert_array_equal(colours(palette, 1), grey.reshape(3, 1))


def test_a_pixel_has_the_class_of_the_nearest_colour():
    palette = colours(("#000000", "#ff0000", "#ffffff"))
    image = np.array([[[10, 0, 20], [200, 30, 30], [250, 200, 220]]], np.uint8)
    np.testing.assert_array_equal(nearest_labels(image, palette), [[0, 1, 2]])


@pytest.mark.parametrize("augment", ["center", "dalle"])
def test_a_label_map_that_is_resized_has_no_other_classes(augment, tmp_path):
    palette = ("#ffff00", "#0000ff", "#808080")  # the last is the mean of the others
    data = section("", tmp_path, source="grey", augment=augment, palette=palette)
    data.resolution = 8
    image = np.zeros((24, 24, 3), np.uint8)
    image[:, :7], image[:, 7:] = (255, 255, 0), (0, 0, 255)
    rng = np.random.default_rng(0)
    transform = AUGMENTATIONS[augment]
    found = source_images.transformed({"image": image}, transform, data, rng, False)
    labels = nearest_labels(found["image"], colours(palette))
    np.testing.assert_array_equal(colours(palette)[labels], found["image"])
    assert set(np.unique(labels)) == {0, 1}
    if augment == "center":  # most of the third column is blue
        np.testing.assert_array_equal(labels[0], [0, 0, 1, 1, 1, 1, 1, 1])


@pytest.mark.parametrize(
    ("true", "made", "message"),
    [
        (np.zeros((2, 2), int), np.zeros((2, 3), int), "one shape"),
        (np.zeros((2, 2), int), np.full((2, 2), 3), "of 3 classes"),
    ],
)
def test_label_maps_that_do_not_fit_are_refused(true, made, message):
    with pytest.raises(ValueError, match=message):
        segmentation.confusion(true, made, 3)
