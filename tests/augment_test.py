# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Augmentation: where crops lie, how large they are, and that draws are independent.

Images have their row in the first channel and their column in the second, so that a
crop shows where it was taken and whether it was flipped.
"""

import itertools

import numpy as np
import pytest
import scipy.stats

from rq.config import default
from rq.data import DataError, augment, loader

LIKELY = 1e-3  # p-value above which the draws of a fixed seed pass


def coordinates(height, width):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)


def many(name, image, side, number=600):
    """Returns `number` augmented images, int `[N, side, side, C]`."""
    transform = augment.AUGMENTATIONS[name]
    crops = [transform(image, side, loader.generator(7, k)) for k in range(number)]
    return np.stack(crops).astype(int)


def is_flipped(crops):
    return crops[:, 0, 0, 1] > crops[:, 0, -1, 1]


def is_uniform(values, values_of):
    """Returns whether integers are spread evenly over a range."""
    assert set(values) <= set(values_of)
    counts = [np.sum(values == value) for value in values_of]
    return scipy.stats.chisquare(counts).pvalue > LIKELY


def is_independent(a, b):
    """Returns whether pairs of small integers are independent."""
    table = np.zeros((max(a) + 1, max(b) + 1), int)
    np.add.at(table, (a, b), 1)
    table = table[table.any(1)][:, table.any(0)]
    return scipy.stats.chi2_contingency(table).pvalue > LIKELY


@pytest.mark.parametrize("height, width", [(32, 51), (51, 32), (32, 32)])
def test_the_crop_of_evaluation_is_the_middle(height, width):
    image = coordinates(height, width)
    top, left = (height - 32) // 2, (width - 32) // 2
    expected = image[top : top + 32, left : left + 32]
    found = augment.center(image, 32, np.random.default_rng(0))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_crops_lie_everywhere_and_half_are_flipped_wherever_they_lie(axis):
    image = coordinates(*((40, 32) if axis == 0 else (32, 40)))
    crops = many("crop_flip", image, 32)
    first = crops[..., axis].min((1, 2))
    assert is_uniform(first, range(9))
    assert is_uniform(is_flipped(crops).astype(int), range(2))
    assert is_independent(first, is_flipped(crops).astype(int))
    # Rows keep their order: no image is upside down.
    assert (np.diff(crops[..., 0], axis=1) == 1).all()


def test_images_of_the_models_size_are_flipped_half_of_the_time():
    image = coordinates(32, 32)
    crops = many("flip", image, 32)
    flipped = is_flipped(crops)
    assert is_uniform(flipped.astype(int), range(2))
    np.testing.assert_array_equal(crops[~flipped][0], image)
    np.testing.assert_array_equal(crops[flipped][0], image[:, ::-1])


def test_random_squares_have_three_quarters_to_all_of_the_area():
    side, large = 16, 200
    crops = many("resized_crop_flip", coordinates(large, large), side)
    # The means of the outermost pixels are one resized pixel less than an edge apart.
    low, high = crops.min((1, 2)), crops.max((1, 2))
    edges = (high - low)[:, :2] * side / (side - 1)
    np.testing.assert_allclose(edges[:, 0], edges[:, 1], atol=2.5)  # squares
    areas = (edges.mean(1) / large) ** 2
    assert 0.73 < areas.min() < 0.77 and 0.98 < areas.max() < 1.02
    assert scipy.stats.kstest((areas - 0.75) / 0.25, "uniform").pvalue > LIKELY
    # Within the image they lie anywhere, rows and columns each for themselves.
    room = large - edges.mean(1)
    roomy = room > 10
    starts = (low[:, :2] - (edges / side - 1) / 2)[roomy] / room[roomy, None]
    np.testing.assert_allclose(starts.mean(0), 0.5, atol=0.05)
    np.testing.assert_allclose(starts.std(0), 0.3, atol=0.03)
    assert abs(np.corrcoef(starts.T)[0, 1]) < 0.15
    flipped = is_flipped(crops)
    assert is_uniform(flipped.astype(int), range(2))
    assert abs(np.corrcoef(flipped, areas)[0, 1]) < 0.15


def test_random_squares_of_images_far_from_square_are_as_large_as_fits():
    for shape in ((32, 200), (200, 32)):
        crops = many("resized_crop_flip", coordinates(*shape), 32, 200)
        long = int(shape[1] > shape[0])
        np.testing.assert_array_equal(crops[0, ..., 1 - long].min(), 0)
        np.testing.assert_array_equal(crops[0, ..., 1 - long].max(), 31)
        first = crops[..., long].min((1, 2))
        assert first.min() < 10 and first.max() > 158


def test_the_crop_of_dalle_is_near_the_middle_up_to_nine_eighths_and_never_flipped():
    side, edge, room = 64, 128, 64
    crops = many("dalle", coordinates(edge, edge + room), side)
    assert not is_flipped(crops).any()
    low, high = crops.min((1, 2)), crops.max((1, 2))
    # A square of 128 is resized to 64 to 72 and cropped to 64: 114 to 128 are seen.
    seen = (high - low)[:, 0] * side / (side - 1)
    resized = np.rint(side * edge / seen).astype(int)
    assert resized.min() == 64 and resized.max() == 72
    assert len(np.unique(resized)) == 9
    whole = np.flatnonzero(resized == 64)
    left = low[whole, 1]
    assert 3 * room // 8 <= left.min() and left.max() <= 5 * room // 8
    assert len(np.unique(left)) > 5
    # Crops of a larger one lie anywhere in it.
    tops = low[resized == 72, 0]
    assert tops.min() == 0 and tops.max() >= 13


def test_shrinking_takes_means_and_enlarging_interpolates():
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::4] = 240  # what does not lie between pixels would be lost
    np.testing.assert_array_equal(augment.resize(stripes, 16, 16), 60)
    np.testing.assert_array_equal(augment.resize(stripes, 64, 16), 60)
    step = np.zeros((2, 2, 1), np.uint8)
    step[:, 1] = 200
    row = augment.resize(step, 8, 8)[0, :, 0]
    assert (np.diff(row.astype(int)) >= 0).all() and len(np.unique(row)) > 3


@pytest.mark.parametrize("shape", [(32, 31), (31, 32), (64, 64)])
@pytest.mark.parametrize("name", ["none", "flip"])
def test_images_that_are_not_cropped_must_have_both_sides(name, shape):
    with pytest.raises(DataError, match=f"{shape[0]} x {shape[1]}"):
        augment.AUGMENTATIONS[name](
            np.zeros((*shape, 3), np.uint8), 32, np.random.default_rng(0)
        )


@pytest.mark.parametrize("name", augment.AUGMENTATIONS)
def test_evaluation_draws_nothing(name):
    data = default().data
    data.augment = name
    _, evaluation = augment.transforms(data)
    image = coordinates(32, 32 if name in ("none", "flip") else 48)
    results = {
        evaluation(image, 32, loader.generator(0, k)).tobytes() for k in range(9)
    }
    assert len(results) == 1


# Draws of the loader


class Columns:
    """Images that are told apart by their blue, and whose columns count up."""

    def __init__(self, number):
        self.number = number

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        image = coordinates(8, 8)
        image[..., 2] = index
        return {"image": image, "label": np.int32(index)}

    def read(self, index):
        return self[index], (f"caption {index}",)


def section(**changes):
    data = default().data
    data.update(dict(resolution=8, augment="flip", threads=0) | changes)
    return data


def flips(number, batches, **options):
    """Returns whether images were flipped, by example and epoch `[number, epochs]`."""
    iterator = loader.shuffled(Columns(number), section(), batch_size=number, **options)
    found = []
    for _ in range(batches):
        batch = next(iterator)
        flipped = batch["image"][:, 0, 0, 1] > batch["image"][:, 0, -1, 1]
        found.append(flipped[np.argsort(batch["label"])])
    return np.stack(found, 1).astype(int)


def test_an_image_is_flipped_anew_in_each_epoch():
    found = flips(40, 60, seed=3)
    assert is_uniform(found.ravel(), range(2))
    assert is_independent(found[:, 1:].ravel(), found[:, :-1].ravel())
    assert is_independent(found[1:].ravel(), found[:-1].ravel())
    assert is_independent(found.ravel(), flips(40, 60, seed=4).ravel())
    # Neither rows nor columns repeat each other.
    assert len({row.tobytes() for row in found}) == 40
    assert len({column.tobytes() for column in found.T.copy()}) == 60


def test_processes_flip_independently():
    first, second = (
        np.concatenate([
            batch["image"][:, 0, 0, 1] > batch["image"][:, 0, -1, 1]
            for batch in itertools.islice(iterator, 60)
        ]).astype(int)
        for process in range(2)
        for iterator in [
            loader.shuffled(
                Columns(40), section(), batch_size=40, seed=3,
                process_index=process, process_count=2,
            )
        ]
    )  # fmt: skip
    assert len(first) == 60 * 20 and is_independent(first, second)


def orders(seeds, epochs, number=24):
    """Returns the position of each example, int `[seeds, epochs, number]`."""
    found = []
    for seed in range(seeds):
        iterator = loader.shuffled(
            Columns(number), section(), batch_size=number, seed=seed
        )
        labels = [next(iterator)["label"] for _ in range(epochs)]
        found.append(np.argsort(labels, axis=1))
    return np.stack(found)


def test_orders_of_epochs_and_of_seeds_are_independent():
    found = orders(12, 12)
    assert len({order.tobytes() for row in found for order in row}) == 144
    quarter = found // 6
    for example in (0, 23):
        assert is_uniform(found[..., example].ravel(), range(24))
    assert is_independent(quarter[:, 1:].ravel(), quarter[:, :-1].ravel())
    assert is_independent(quarter[1:].ravel(), quarter[:-1].ravel())
    assert is_independent(quarter[:-1, 1:].ravel(), quarter[1:, :-1].ravel())


def test_captions_get_other_random_numbers_in_each_epoch():
    def tokens(captions, rng):
        return np.array([int(captions[0].split()[1]), rng.integers(16)])

    iterator = loader.shuffled(
        Columns(30), section(), batch_size=30, seed=1, tokens=tokens
    )
    texts = [next(iterator) for _ in range(40)]
    for batch in texts:
        np.testing.assert_array_equal(batch["text"][:, 0], batch["label"])
    drawn = np.stack([
        batch["text"][np.argsort(batch["label"]), 1] for batch in texts
    ])  # fmt: skip
    assert is_uniform(drawn.ravel(), range(16))
    assert is_independent(drawn[1:].ravel(), drawn[:-1].ravel())
    assert is_independent(drawn[:, 1:].ravel(), drawn[:, :-1].ravel())


def test_random_numbers_of_seeds_and_places_are_independent():
    found = np.array([
        [loader.generator(seed, place).integers(8) for place in range(40)]
        for seed in range(40)
    ])  # fmt: skip
    assert is_uniform(found.ravel(), range(8))
    assert is_independent(found[1:].ravel(), found[:-1].ravel())
    assert is_independent(found[:, 1:].ravel(), found[:, :-1].ravel())
    assert is_independent(found.ravel(), found.T.ravel())  # seed 1, place 2; 2, 1
    assert len({row.tobytes() for row in found}) == 40


def test_versions_of_an_image_are_the_middle_first_and_then_augmented_anew():
    source, data = Columns(5), section(augment="crop_flip", resolution=6)
    versions = loader.Variants(source, data, variants=9, seed=2)
    assert len(versions) == 45
    read = [versions.read(i) for i in range(45)]
    assert [example["label"] for example, _ in read] == sorted(9 * list(range(5)))
    assert [c for _, c in read] == [(f"caption {i // 9}",) for i in range(45)]
    images = np.stack([example["image"] for example, _ in read]).astype(int)
    for image in range(5):
        middle = augment.center(source[image]["image"], 6, None)
        np.testing.assert_array_equal(images[9 * image], middle)
        assert (images[9 * image : 9 * image + 9, ..., 2] == image).all()
    flipped = is_flipped(images).reshape(5, 9)
    assert 10 < flipped.sum() < 30 and not flipped[:, 0].any()
    assert len({row.tobytes() for row in flipped}) == 5
    other = loader.Variants(source, data, variants=9, seed=3)
    again = np.stack([other[i]["image"] for i in range(45)]).astype(int)
    assert (is_flipped(again) != flipped.ravel()).any()
