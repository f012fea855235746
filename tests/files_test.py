# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of one's own images: folders, tar shards, tables; odd and damaged files."""

import collections
import io
import json
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from rq.config import default
from rq.data import DataError, file_source, loader, sources, tfds_source, walk
from rq.data.decode import DecodeError, decode, examine
from rq.data.own_images import prepared, readers
from rq.data.own_images.inventory import Inventory


def section(path, tmp_path, **changes):
    """Returns a `data` section for files, prepared below `tmp_path`."""
    data = default().data
    settings = dict(
        name="folder",
        path=str(path),
        dir=str(tmp_path / "tfds"),
        resolution=16,
        augment="center",
        holdout=2,
    )
    data.update(settings | changes)
    return data


def encoded(color=0, kind="PNG", mode="RGB", side=24, **options):
    stream = io.BytesIO()
    pixels = np.random.default_rng(color).integers(0, 255, (side, side, 4), np.uint8)
    pixels = pixels if mode == "RGBA" else pixels[..., :3]
    Image.fromarray(pixels).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def everything(source):
    return [source[i] for i in range(len(source))]


# Readers


def test_a_folder_has_classes_captions_and_a_holdout(tmp_path):
    root = tmp_path / "pets"
    for k in range(6):
        write(root / f"cat/{k}.png", encoded(k))
        write(root / f"dog/{k}.jpg", encoded(10 + k, "JPEG"))
    write(root / "cat/0.txt", "a cat\na sleeping cat\n")
    write(root / "captions.csv", "file,caption\ndog/1.jpg,a dog\ndog/1.jpg,his dog\n")
    write(root / "notes.md", "no image")
    data = section(root, tmp_path, num_classes=2)
    report = sources.prepare(data)
    assert report["splits"] == {"train": 10, "validation": 2}
    assert report["left_out"] == 0 and report["small"] == 0

    captions, labels = collections.Counter(), []
    for split in ("train", "validation"):
        source = sources.open_split(data, split)
        for i in range(len(source)):
            captions.update(source.captions(i))
            labels.append(int(source[i]["label"]))
    assert captions == {
        name: 1 for name in ("a cat", "a sleeping cat", "a dog", "his dog")
    }
    assert sorted(labels) == [0] * 6 + [1] * 6
    assert sources.prepare(data) == report  # kept, not rewritten

    batch = next(loader.shuffled(source, data, batch_size=2, seed=0))
    assert batch["image"].shape == (2, 16, 16, 3)
    with pytest.raises(DataError, match="2 classes.*num_classes is 7"):
        sources.open_split(section(root, tmp_path, num_classes=7), "train")


def test_split_folders_and_lists_are_kept(tmp_path):
    for k, split in enumerate(["train", "train", "val", "test"]):
        write(tmp_path / f"a/{split}/x/{k}.png", encoded(k))
    found = list(readers.folder(tmp_path / "a"))
    assert [(f.split, f.label) for f in found] == [
        ("test", "x"),
        ("train", "x"),
        ("train", "x"),
        ("validation", "x"),
    ]
    for k in range(4):
        write(tmp_path / f"b/{k}.png", encoded(k))
    write(tmp_path / "b/train.txt", "0.png\n2.png\n")
    write(tmp_path / "b/validation.txt", "3.png\n")
    found = {f.name: f.split for f in readers.folder(tmp_path / "b")}
    assert found == {"0.png": "train", "2.png": "train", "3.png": "validation"}


def test_the_holdout_is_exact_and_does_not_depend_on_the_machine(tmp_path):
    """Like the 60,000 and 10,000 images of FFHQ, but smaller."""
    for k in range(70):
        write(tmp_path / f"faces/{k // 10:02d}/{k:05d}.png", encoded(k, side=8))
    data = section(tmp_path / "faces", tmp_path, holdout=10)
    splits = prepared.scan(data, Inventory())
    assert {name: len(found) for name, found in splits.items()} == {
        "train": 60,
        "validation": 10,
    }
    names = [found.name[-9:-4] for found in splits["validation"]]
    assert names[:3] == HELD_OUT
    with pytest.raises(DataError, match="holdout=70 of the 70"):
        prepared.scan(section(tmp_path / "faces", tmp_path, holdout=70), None)


HELD_OUT = ["00003", "00015", "00025"]


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def test_tar_shards_give_images_captions_and_classes(tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard:05d}.tar", "w") as archive:
            for k in range(3):
                key = f"{shard}{k}"
                add(archive, f"{key}.json", json.dumps({"caption": f"j{key}"}).encode())
                add(archive, f"{key}.jpg", encoded(k, "JPEG"))
                if k == 0:
                    add(archive, f"{key}.txt", b"from txt")
                add(archive, f"{key}.cls", str(shard).encode())
    found = list(readers.tar(tmp_path))
    assert [f.captions for f in found] == [
        "from txt", "j01", "j02", "from txt", "j11", "j12"
    ]  # fmt: skip
    assert [f.label for f in found] == ["0"] * 3 + ["1"] * 3
    assert found[1].read() == encoded(1, "JPEG")
    data = section(tmp_path, tmp_path, name="tar", holdout=1, num_classes=2)
    assert sources.prepare(data)["splits"] == {"train": 5, "validation": 1}


def test_files_before_the_damage_in_a_tar_are_read(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for k in range(12):
            add(archive, f"{k}.png", encoded(k))
    path.write_bytes(path.read_bytes()[:20_000])
    write(tmp_path / "y.tar", b"no tar")
    data = section(tmp_path, tmp_path, name="tar", holdout=5)
    report = sources.prepare(data)
    kept = sum(report["splits"].values())
    assert 6 <= kept < 12
    assert any("x.tar" in reason or "truncated" in reason
               for reason in report["files_left_out"].values())  # fmt: skip
    assert "y.tar" in report["files_left_out"]


def test_a_table_lists_files_with_captions(tmp_path):
    for k in range(4):
        write(tmp_path / f"images/{k}.png", encoded(k))
    lines = [f"images/{k}.png\tcaption {k}\n" for k in range(4)]
    write(tmp_path / "t.tsv", "".join([*lines, "images/0.png\tmore\n", "gone.png\tx"]))
    data = section(tmp_path / "t.tsv", tmp_path, name="tsv", holdout=1)
    report = sources.prepare(data)
    assert sum(report["splits"].values()) == 4
    assert list(report["files_left_out"]) == ["gone.png"]
    captions = [
        sources.open_split(data, split).captions(i)
        for split, number in report["splits"].items()
        for i in range(number)
    ]
    assert sorted(captions)[0] == ("caption 0", "more") and len(captions) == 4
    write(tmp_path / "bad.tsv", "no tab here")
    with pytest.raises(DataError, match="bad.tsv, line 1"):
        list(readers.tsv(tmp_path / "bad.tsv"))


# Errors


@pytest.mark.parametrize(
    "name, message",
    [("folder", "rq prepare"), ("tar", "rq prepare")],
)
def test_a_set_that_is_not_prepared_says_the_command(tmp_path, name, message):
    with pytest.raises(DataError, match=message):
        sources.open_split(section(tmp_path, tmp_path, name=name), "train")


def test_a_path_without_images_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        sources.prepare(section(tmp_path / "gone", tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images to train on"):
        sources.prepare(section(tmp_path / "empty", tmp_path))
    for k in range(9):
        write(tmp_path / f"junk/{k}.jpg", b"junk")
    with pytest.raises(DataError, match="none of 7 images can be read"):
        sources.prepare(section(tmp_path / "junk", tmp_path))


def test_captions_without_their_columns_are_an_error(tmp_path):
    write(tmp_path / "captions.csv", "name,text\n")
    with pytest.raises(DataError, match="file and caption"):
        list(readers.folder(tmp_path))


# Odd and damaged images


def odd_images():
    """Returns images by name, with their kind in the report."""
    gif = io.BytesIO()
    frames = [Image.new("RGB", (9, 9), c) for c in ("red", "green", "blue")]
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:])
    sixteen = io.BytesIO()
    deep = np.arange(400, dtype=np.uint16).reshape(20, 20) * 160
    Image.fromarray(deep).save(sixteen, "PNG")
    return {
        "grey.jpg": (encoded(1, "JPEG", "L"), "grey"),
        "palette.png": (encoded(2, "PNG", "P"), "palette"),
        "alpha.png": (encoded(3, "PNG", "RGBA"), "alpha"),
        "alpha.webp": (encoded(4, "WEBP", "RGBA"), "alpha"),
        "cmyk.jpg": (encoded(5, "JPEG", "CMYK"), "CMYK"),
        "bits.png": (encoded(6, "PNG", "1"), "black and white"),
        "deep.png": (sixteen.getvalue(), "16 bit"),
        "film.gif": (gif.getvalue(), "animated"),
        "pixel.png": (encoded(7, side=1), None),
        "plain.bmp": (encoded(8, "BMP"), None),
        "progressive.jpg": (encoded(9, "JPEG", progressive=True), None),
    }


@pytest.mark.parametrize("name", odd_images())
@pytest.mark.parametrize("channels", [1, 3])
def test_odd_images_are_converted_and_named(name, channels):
    content, kind = odd_images()[name]
    shape, found = examine(content)
    assert found == kind
    image = decode(content, channels)
    assert image.shape == (*shape, channels) and image.dtype == np.uint8
    if name == "deep.png":  # 16 bits are scaled, not cut
        assert np.ptp(image) > 200


def test_a_photo_is_turned_upright():
    image = Image.fromarray(np.zeros((10, 20, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    out = io.BytesIO()
    image.save(out, "JPEG", exif=exif)
    assert decode(out.getvalue(), 3).shape == (20, 10, 3)
    assert examine(out.getvalue())[0] == (20, 10)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_a_truncated_jpeg_is_an_error_and_not_half_an_image(share):
    content = encoded(0, "JPEG", side=64)
    decode(content, 3)
    with pytest.raises(DecodeError):
        decode(content[: int(share * len(content))], 3)


def test_five_hundred_odd_and_damaged_files_are_all_accounted_for(tmp_path):
    """Random bytes and truncated, scrambled or odd images do not stop preparing."""
    rng = np.random.default_rng(0)
    suffixes = sorted(walk.SUFFIXES)
    odd = odd_images()
    root = tmp_path / "fuzz"
    for k in range(500):
        name, (content, _) = list(odd.items())[k % len(odd)]
        what = k % 4
        if what == 0:
            content = rng.bytes(int(rng.integers(0, 300)))
            name = f"x{suffixes[k % len(suffixes)]}"
        elif what == 1:
            content = content[: int(rng.integers(0, len(content)))]
        elif what == 2:
            scrambled = bytearray(content)
            for place in rng.integers(0, len(content), 8):
                scrambled[place] = int(rng.integers(256))
            content = bytes(scrambled)
        write(root / f"{k:03d}_{name}", content)
    data = section(root, tmp_path, holdout=20)
    report = sources.prepare(data)
    kept = sum(report["splits"].values())
    assert kept + report["left_out"] == 500
    assert report["left_out"] == len(report["files_left_out"])
    assert report["kept"] == report["splits"]
    assert kept > 125 and report["left_out"] > 150  # whole ones; random and cut ones
    assert set(report["converted"]) >= {"grey", "alpha", "CMYK", "palette", "animated"}
    source = sources.open_split(data, "train")
    for example in everything(source):
        assert example["image"].shape[-1] == 3
    assert not source.replaced
    batches = loader.shuffled(source, data, batch_size=10, seed=0)
    assert next(batches)["image"].shape == (10, 16, 16, 3)


# Damage that shows while training


FEATURES = tfds.features.FeaturesDict(
    {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(num_classes=9),
        "caption": tfds.features.Text(),
    }
)


class Records:
    """Serialized examples, some with damaged images."""

    def __init__(self, damaged, number=6):
        self.damaged, self.number = damaged, number

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        content = b"x" if index in self.damaged else encoded(index)
        caption = f"image {index}"
        example = {"image": io.BytesIO(content), "label": index, "caption": caption}
        return FEATURES.serialize_example(FEATURES.encode_example(example))


def test_an_image_damaged_later_is_replaced_by_the_next_and_counted():
    source = tfds_source.TFDSSource(Records({2, 3, 5}), FEATURES, "set train", 3)
    labels = [int(source[i]["label"]) for i in (0, 2, 3, 5, 2)]
    assert labels == [0, 4, 4, 0, 4]
    assert source.replaced == {2, 3, 5}
    example, captions = source.read(2)
    assert example["label"] == 4 and captions == ("image 4",)
    with pytest.raises(DataError, match="no image from 1"):
        tfds_source.TFDSSource(Records(set(range(6))), FEATURES, "set train", 3)[1]


# One's own images for evaluation


def test_image_files_are_read_and_damaged_ones_left_out(tmp_path):
    write(tmp_path / "a.png", encoded(0, side=40))
    write(tmp_path / "sub/b.jpg", encoded(1, "JPEG", "L"))
    write(tmp_path / "c.png", b"junk")
    assert len(file_source.FileSource(tmp_path, 3)) == 2
    one = file_source.FileSource(tmp_path / "a.png", 3)
    np.testing.assert_array_equal(one[0]["image"], decode(encoded(0, side=40), 3))
    for path in ("c.png", "gone.png"):
        with pytest.raises(DataError, match=path):
            file_source.FileSource(tmp_path / path, 3)
