# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests that preparing one's own images counts every file and reports every loss."""

import io
import json
import os
import tarfile
import threading

import cv2
import faulty_folder
import numpy as np
import pytest
from faulty_folder import build, cut_jpeg, encoded, shape, write
from PIL import Image

from rq.config import default
from rq.data import DataError, captions, file_source, sources, walk
from rq.data.decode import DecodeError, decode, examine
from rq.data.own_images import prepared, readers
from rq.data.own_images.inventory import Inventory

RED = np.full((20, 20, 3), (200, 40, 40), np.uint8)


def picture(seed: int) -> bytes:
    """Returns a unique PNG."""
    return encoded(np.random.default_rng(seed).integers(0, 255, (9, 9, 3), np.uint8))


def section(path, tmp_path, **changes):
    """Returns a `data` section for files, prepared below `tmp_path`."""
    data = default().data
    settings = dict(name="folder", path=str(path), dir=str(tmp_path / "tfds"))
    data.update(settings | dict(resolution=8, holdout=1) | changes)
    return data


def found(reader, path):
    """Returns the images by name, and the inventory."""
    inventory = Inventory()
    return {image.name: image for image in reader(path, inventory)}, inventory


def report_of(inventory):
    return json.loads(json.dumps(inventory.as_dict()))


# All faults at once


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """Returns the data section of the faulty folder and the report of preparing it."""
    place = tmp_path_factory.mktemp("faulty")
    build(place / "shapes", place / "elsewhere")
    data = section(place / "shapes", place, resolution=32, holdout=8)
    return data, sources.prepare(data)


def test_every_file_of_the_faulty_folder_is_counted(faulty):
    data, report = faulty
    kept = sum(report["kept"].values())
    assert report["images_seen"] == kept + report["left_out"] == 66
    others = sum(report["other_files"].values())
    assert report["files_seen"] == report["images_seen"] + others
    seen = sum(len(names) for *_, names in os.walk(data.path))
    linked = faulty_folder.EACH + 1  # the loop is a file; os.walk skips it
    assert report["files_seen"] == seen + linked
    assert sum(report["reasons"].values()) == report["left_out"] == 12
    left_out = {name.rpartition("/")[2] for name in report["files_left_out"]}
    assert left_out == set(
        "broken.png loop cut.jpg cut_progressive.jpg dark.png empty.jpg huge.png "
        "photo.heic photo.nef signed.tif int32_out_of_range.tif "
        "without_its_end.jpg".split()
    )
    assert all(reason.strip() for reason in report["files_left_out"].values())


def test_classes_are_numbered_in_natural_order_and_counted(faulty):
    data, report = faulty
    names = [(entry["number"], entry["name"]) for entry in report["classes"]]
    expected = ["2 lines", "10 lines", "circle", "square", "triangle"]
    assert names == list(enumerate(expected))
    counts = [c.get("train", 0) + c.get("validation", 0) for c in report["classes"]]
    assert counts == [8, 8, 20, 10, 8]
    for split in ("train", "validation"):
        source = sources.open_split(data, split)
        labels = np.bincount([int(s["label"]) for s in iterate(source)], minlength=5)
        assert list(labels) == [c.get(split, 0) for c in report["classes"]]


def iterate(source):
    return (source[i] for i in range(len(source)))


def test_captions_are_matched_and_those_without_an_image_counted(faulty):
    data, report = faulty
    lines = []
    for split in ("train", "validation"):
        source = sources.open_split(data, split)
        lines += [source.captions(i) for i in range(len(source)) if source.captions(i)]
    assert sorted(map(len, lines)) == [1, 1, 1, 2]
    texts = {line for some in lines for line in some}
    assert {"ein grüner Kreis", "one\u2028caption", "another\u0085one"} <= texts
    assert "a circle; on two lines" in texts
    assert max(map(len, texts)) > 131_072
    assert report["images_with_captions"] == 4
    notes = "\n".join(report["notes"])
    for words in ("circle/gone.png", "square/gone.txt", "cp1252", "no images"):
        assert words in notes


def test_the_summary_and_its_picture_are_written_with_the_set(faulty):
    _, report = faulty
    text = sources.summary(report)
    for line in (
        "54 kept (47 train, 7 validation) + 12 left out",
        "1  10 lines: 8 train",
        "pixels out of range: float32 from",
    ):
        assert line in text
    picture = text.split("picture")[-1].strip()
    width, height = Image.open(picture).size
    assert height == 5 * 66 and width > 500
    assert np.asarray(Image.open(picture)).std() > 10


def test_no_copy_is_in_two_splits(faulty):
    data, _ = faulty
    pixels = [
        {example["image"].tobytes() for example in iterate(sources.open_split(data, s))}
        for s in ("train", "validation")
    ]
    assert not pixels[0] & pixels[1]


# 1. Links


def test_linked_folders_are_followed_and_loops_are_not(tmp_path):
    write(tmp_path / "out/cats/0.png", picture(0))
    write(tmp_path / "set/birds/0.png", picture(1))
    write(tmp_path / "set/birds/deep/er/1.png", picture(2))
    (tmp_path / "set/cats").symlink_to(tmp_path / "out/cats")
    (tmp_path / "set/dogs").symlink_to("../out/cats")
    (tmp_path / "set/birds/self").symlink_to(".")
    (tmp_path / "set/birds/above").symlink_to(tmp_path)
    (tmp_path / "set/a.png").symlink_to(tmp_path / "set/a.png")
    images, inventory = found(readers.folder, tmp_path / "set")
    assert sorted(images) == [
        "birds/0.png", "birds/deep/er/1.png", "cats/0.png", "dogs/0.png"
    ]  # fmt: skip
    assert inventory.left_out == 3
    source = file_source.FileSource(tmp_path / "set", 3, strict=True)
    assert len(source) == 4
    other = file_source.FileSource(tmp_path / "set", 3)
    assert len(other) == 4


def test_many_links_to_each_other_end(tmp_path):
    for k in range(40):
        folder = tmp_path / f"{k:02d}"
        folder.mkdir()
        for name in "ab":
            (folder / name).symlink_to(tmp_path / f"{(k + 1) % 40:02d}")
    write(tmp_path / "39/x.png", picture(0))
    names = [file.name for file in walk.walk(tmp_path) if not file.problem]
    assert 1 <= len(names) <= walk.MAX_VISITS


def test_pipes_and_locked_folders_do_not_stop_it(tmp_path):
    write(tmp_path / "a/0.png", picture(0))
    os.mkfifo(tmp_path / "a/pipe.png")
    images, inventory = found(readers.folder, tmp_path)
    assert list(images) == ["a/0.png"] and inventory.left_out == 1


# 2, 4, 8. Tar files


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            content = content.encode() if isinstance(content, str) else content
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_dots_in_names_of_members_separate_no_images(tmp_path):
    members = []
    for k in range(10):
        members += [(f"scan 2.{k} (clean).png", picture(k))]
        members += [(f"scan 2.{k} (clean).txt", f"caption {k}")]
    members += [("d/0000.left.png", picture(20)), ("d/0000.right.png", picture(21))]
    members += [("d/0000.txt", "both sides"), ("d/0000.right.caption", "the right")]
    members += [("0001.seg.png", picture(22)), ("0001.jpg", encoded(RED, "JPEG"))]
    members += [("0001.json", json.dumps({"caption": ["one", "two"]}))]
    members += [("v1.0/7.png", picture(23)), ("v1.0/7.caption.txt", "seven")]
    members += [("0009.txt", "of none"), ("notes.pdf", "x")]
    images, inventory = found(readers.tar, write_tar(tmp_path / "x.tar", members))
    assert len(images) == 15
    for k in range(10):
        assert images[f"x.tar/scan 2.{k} (clean).png"].captions == f"caption {k}"
    assert images["x.tar/d/0000.left.png"].captions == "both sides"
    assert images["x.tar/d/0000.right.png"].captions == "both sides\nthe right"
    assert images["x.tar/0001.seg.png"].captions == "one\ntwo"
    assert images["x.tar/v1.0/7.png"].captions == "seven"
    assert inventory.other[".txt without an image"] == 1
    assert inventory.other[".pdf"] == 1
    assert len(images) + sum(inventory.other.values()) == len(members)


def test_captions_may_be_separated_from_their_images(tmp_path):
    members = [(f"{k}.txt", f"caption {k}") for k in range(3)]
    members += [(f"{k}.PNG", picture(k)) for k in range(3)]
    images, _ = found(readers.tar, write_tar(tmp_path / "x.tar", members))
    lines = [image.captions for image in images.values()]
    assert lines == ["caption 0", "caption 1", "caption 2"]


def test_files_of_macos_are_ignored_and_counted(tmp_path):
    members = [("0.png", picture(0)), ("0.txt", "zero"), ("._0.png", b"\0\5\x16\7")]
    members += [("._0.txt", b"\0\5\x16\7"), ("__MACOSX/._1.png", "x")]
    members += [("__MACOSX/0.txt", "wrong"), (".DS_Store", "x"), ("Thumbs.db", "x")]
    images, inventory = found(readers.tar, write_tar(tmp_path / "x.tar", members))
    assert [image.captions for image in images.values()] == ["zero"]
    assert sum(inventory.other.values()) == 7 and not inventory.left_out


def test_numbers_in_cls_are_the_numbers_of_classes(tmp_path):
    members = [(f"{k}.cls", f"{n}\n") for k, n in enumerate([10, 2, 9, 2, 0, "02"])]
    members += [(f"{k}.png", picture(k)) for k in range(6)]
    write_tar(tmp_path / "x.tar", members)
    data = section(tmp_path / "x.tar", tmp_path, name="tar", num_classes=11)
    report = sources.prepare(data)
    labels = [
        int(example["label"])
        for split in ("train", "validation")
        for example in iterate(sources.open_split(data, split))
    ]
    assert sorted(labels) == [0, 2, 2, 2, 9, 10]
    assert len(report["classes"]) == 11
    assert report["classes"][1] == {"number": 1, "name": "1"}  # without images


@pytest.mark.parametrize("other", ["-1", "cat", "3.0", "99999999999"])
def test_numbers_and_names_in_cls_are_not_mixed(tmp_path, other):
    members = [("0.cls", "0"), ("1.cls", "1"), ("2.cls", other)]
    members += [(f"{k}.png", picture(k)) for k in range(3)]
    write_tar(tmp_path / "x.tar", members)
    with pytest.raises(DataError, match=r"\.cls") as error:
        sources.prepare(section(tmp_path / "x.tar", tmp_path, name="tar"))
    assert "\n" not in str(error.value)


def test_names_of_folders_sort_by_their_numbers(tmp_path):
    names = ["10", "2", "1", "a10b", "a2b", "A", "n02", "n1"]
    expected = ["1", "2", "10", "A", "a2b", "a10b", "n1", "n02"]
    data = section(tmp_path, tmp_path)
    assert prepared.class_names(data, set(names)) == expected


def test_images_without_class_remove_all_labels_with_a_note(tmp_path):
    for k in range(4):
        write(tmp_path / f"set/{'ab'[k % 2]}/{k}.png", picture(k))
    write(tmp_path / "set/5.png", picture(5))
    report = sources.prepare(section(tmp_path / "set", tmp_path))
    assert not report["classes"]
    assert any("1 images have no class" in note for note in report["notes"])


def test_one_name_twice_in_a_tar_is_one_image(tmp_path):
    members = [(f"{k % 6}.png", picture(k % 6)) for k in range(12)]
    write_tar(tmp_path / "x.tar", members)
    data = section(tmp_path / "x.tar", tmp_path, name="tar", holdout=3)
    report = sources.prepare(data)
    assert report["splits"] == {"train": 3, "validation": 3}
    assert report["left_out"] == 6
    assert set(report["reasons"]) == {"a second file of this name in the tar"}


def test_copies_under_other_names_stay_in_one_split(tmp_path):
    for k in range(20):
        write(tmp_path / f"set/{k}.png", picture(k // 2))
    data = section(tmp_path / "set", tmp_path, holdout=6)
    splits = prepared.scan(data, Inventory())
    assert len(splits["validation"]) == 6
    contents = [{image.read() for image in images} for images in splits.values()]
    assert not contents[0] & contents[1]


def test_copies_across_splits_of_ones_own_are_counted(tmp_path):
    for k in range(4):
        write(tmp_path / f"set/train/{k}.png", picture(k))
        write(tmp_path / f"set/val/{k}.png", picture(k + 2))
    report = sources.prepare(section(tmp_path / "set", tmp_path))
    assert report["splits"] == {"train": 4, "validation": 4}
    note = "images of other splits are copies of images in train: 2"
    assert any(note in line for line in report["notes"])


@pytest.mark.parametrize("kind", ["gz", "link"])
def test_compressed_tars_and_links_in_tars_are_left_out_with_a_reason(tmp_path, kind):
    content = picture(0)
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w:gz" if kind == "gz" else "w") as archive:
        member = tarfile.TarInfo("0.png")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
        member = tarfile.TarInfo("1.png")
        member.type, member.linkname = tarfile.LNKTYPE, "0.png"
        archive.addfile(member)
    images, inventory = found(readers.tar, path)
    assert len(images) == (kind == "link") and inventory.left_out == 1
    expected = "compressed tar" if kind == "gz" else "a link in the tar"
    assert expected in str(inventory.files_left_out)


# 5, 6. Tables and texts


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le", "utf-16-be"]
)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_of_spreadsheets(tmp_path, encoding, separator, end):
    rows = [["number", "File ", "Caption"], ["1", "a.png", "gr\u00fcn"]]
    rows += [["2", "b.png", f'"two{end}lines, and ""quotes"";\t"'], ["3", "c.png", ""]]
    text = end.join(separator.join(row) for row in rows) + end
    write(tmp_path / "captions.csv", text.encode(encoding))
    rows, name = captions.read_csv(tmp_path / "captions.csv")
    expected = [("a.png", "gr\u00fcn"), ("b.png", 'two lines, and "quotes";')]
    assert rows == [*expected, ("c.png", "")]
    assert name == encoding.replace("-sig", "").replace("utf-16", "utf-16-le").replace(
        "-le-le", "-le"
    ).replace("-le-be", "-be")


def test_faults_in_tables_are_one_line_with_the_place(tmp_path):
    for content, words in (
        ("name,text\n", "file and caption"),
        ("", "file and caption"),
        ('file,caption\na.png,"never closed\nb.png,x\n', "twice"),
        ("file,caption\na.png\n", "row 2 has 1 columns"),
        ('file,caption\n"a.png"b,c\n', "line 2"),
    ):
        write(tmp_path / "captions.csv", content)
        with pytest.raises(DataError, match=words) as error:
            captions.read_csv(tmp_path / "captions.csv")
        assert "\n" not in str(error.value)


def test_names_in_tables_and_lists_match_those_of_other_systems(tmp_path):
    write(tmp_path / "caf\u00e9/0.png", picture(0))
    write(tmp_path / "b/1.png", picture(1))
    write(tmp_path / "b/2.png", picture(2))
    rows = "file,caption\ncafe\u0301\\0.png,decomposed\n./b/1.png,dot\n"
    write(tmp_path / "captions.csv", rows)
    write(tmp_path / "train.txt", "\ufeffcafe\u0301/0.png\r\nb\\1.png\r\n")
    write(tmp_path / "val.txt", "b/1.png\nb/2.png\nb/gone.png\n")
    images, inventory = found(readers.folder, tmp_path)
    assert [i.captions for i in images.values()] == ["dot", "", "decomposed"]
    assert [i.split for i in images.values()] == ["train", "validation", "train"]
    notes = " ".join(report_of(inventory)["notes"])
    assert "two lists" in notes and "b/gone.png" in notes


def test_images_in_no_list_are_left_out_and_counted(tmp_path):
    for k in range(3):
        write(tmp_path / f"{k}.png", picture(k))
    write(tmp_path / "train.txt", "0.png\n")
    images, inventory = found(readers.folder, tmp_path)
    assert list(images) == ["0.png"] and inventory.left_out == 2


def test_captions_of_an_image_called_test_are_not_a_list(tmp_path):
    write(tmp_path / "test.png", picture(0))
    write(tmp_path / "1.png", picture(1))
    write(tmp_path / "test.txt", "an image for testing")
    images, _ = found(readers.folder, tmp_path)
    assert images["test.png"].captions == "an image for testing" and len(images) == 2


def test_a_quoted_tsv_and_one_with_literal_quotes(tmp_path):
    write(tmp_path / "a.tsv", 'file\tcaption\r\na.png\t"two\r\nlines"\r\nb.png\tx\r\n')
    rows, _ = captions.read_tsv(tmp_path / "a.tsv")
    assert rows == [("a.png", "two lines"), ("b.png", "x")]
    write(tmp_path / "b.tsv", 'a.png\t"open\nb.png\tshe said "yes"\nc.png\tclose"\n')
    rows, _ = captions.read_tsv(tmp_path / "b.tsv")
    assert rows[1:] == [("b.png", 'she said "yes"'), ("c.png", 'close"')]
    write(tmp_path / "c.tsv", f"a.png\t{'x' * 200_000}\tmore\u2028\u0085more\n\n")
    rows, _ = captions.read_tsv(tmp_path / "c.tsv")
    assert len(rows) == 1 and rows[0][1].endswith("\tmore\u2028\u0085more")


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1e"])
def test_a_caption_with_line_breaks_becomes_one_line(tmp_path, mark):
    line = f"one{mark}caption"
    for k in range(2):
        write(tmp_path / f"set/{k}.png", picture(k))
        write(tmp_path / f"set/{k}.txt", f"{line}\r\n\nsecond\r")
    data = section(tmp_path / "set", tmp_path)
    sources.prepare(data)
    assert sources.open_split(data, "train").captions(0) == (line, "second")
    assert captions.split_lines(f"{line}\n\nb\r\n") == [line, "", "b"]


# 7. Names


def test_names_that_are_not_utf8_are_kept(tmp_path):
    place = os.fsencode(tmp_path) + b"/gr\xfcn \xff"
    os.makedirs(place + b"/k\xe4se")
    for k in range(3):
        with open(place + b"/k\xe4se/b\xe4r %d.png" % k, "wb") as file:
            file.write(picture(k))
    with open(place + b"/k\xe4se/b\xe4r 0.txt", "wb") as file:
        file.write("Bär".encode("cp1252"))
    data = section(os.fsdecode(place), tmp_path)
    report = sources.prepare(data)
    assert report["splits"] == {"train": 2, "validation": 1}
    assert report["classes"][0]["name"] == "k\\xe4se"
    assert report["images_with_captions"] == 1
    members = [(os.fsdecode(b"b\xe4r %d.png" % k), picture(k)) for k in range(3)]
    write_tar(tmp_path / "x.tar", [(n, c) for n, c in members])
    data = section(tmp_path / "x.tar", tmp_path, name="tar")
    assert sources.prepare(data)["splits"] == {"train": 2, "validation": 1}


@pytest.mark.parametrize("names", [["a", "a "], ["x\ny", "x"], [" ", "b"]])
def test_odd_names_of_classes_keep_their_numbers(tmp_path, names):
    for k, name in enumerate(names):
        for i in range(2):
            write(tmp_path / "set" / name / f"{i}.png", picture(2 * k + i))
    data = section(tmp_path / "set", tmp_path, num_classes=2)
    report = sources.prepare(data)
    assert len(report["classes"]) == 2
    source = sources.open_split(data, "train+validation")
    assert sorted(int(example["label"]) for example in iterate(source)) == [0, 0, 1, 1]


# 10. Pixels


def tiff(array) -> bytes:
    return cv2.imencode(".tiff", array)[1].tobytes()


RAMP = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "array, scale",
    [
        (RAMP, 255),
        (RAMP.astype(np.float64), 255),
        (RAMP * 255, 1),
        ((RAMP * 255).astype(np.int32), 1),
        ((RAMP * 65535).astype(np.int32), 1 / 256),
        ((RAMP * 65535).astype(np.uint16), 1 / 256),
        (np.dstack([RAMP, RAMP, RAMP]), 255),
        (np.dstack([RAMP, RAMP, RAMP]) * 255, 1),
        ((np.dstack([RAMP, RAMP, RAMP]) * 65535).astype(np.uint16), 1 / 256),
    ],
)
def test_other_types_of_pixels_are_scaled(array, scale, channels):
    content = tiff(array)
    image = decode(content, channels)
    assert image.shape == (20, 20, channels) and examine(content)[0] == (20, 20)
    expected = array if array.ndim == 2 else array[..., 0]
    assert np.abs(image[..., 0] - expected.astype(float) * scale).max() <= 1


@pytest.mark.parametrize(
    "array",
    [
        RAMP * 2 - 1,
        RAMP * 1.5,
        RAMP * 1000,
        np.where(RAMP > 0.5, np.nan, RAMP),
        np.where(RAMP > 0.5, np.inf, RAMP),
        (RAMP * 2e9).astype(np.int32),
        (RAMP * 255).astype(np.int32) - 10,
        (RAMP * 3000).astype(np.int32),
        (RAMP * 4095).astype(np.uint16),
        (RAMP * 255).astype(np.uint16),
        np.dstack([RAMP, RAMP, RAMP]) * 2 - 1,
    ],
)
def test_pixels_out_of_range_are_left_out_with_a_reason(array):
    with pytest.raises(DecodeError, match=r"out of range|nearly black"):
        examine(tiff(array.astype(np.float32) if array.dtype.kind == "f" else array))


def test_colours_of_float_images_keep_their_order():
    bgr = np.zeros((9, 9, 3), np.float32)
    bgr[..., 2] = 1
    assert decode(tiff(bgr), 3)[0, 0].tolist() == [255, 0, 0]
    rgb16 = np.zeros((9, 9, 3), np.uint16)
    rgb16[..., 2] = 65535
    for kind in (".png", ".tiff"):
        content = cv2.imencode(kind, rgb16)[1].tobytes()
        assert decode(content, 3)[0, 0].tolist() == [255, 0, 0]
        assert examine(content)[1] == "16 bit"


def test_black_and_dark_images_of_8_bits_are_kept():
    for value in (0, 1, 5):
        examine(encoded(np.full((9, 9, 3), value, np.uint8)))
    examine(cv2.imencode(".png", np.zeros((9, 9), np.uint16))[1].tobytes())


# 14. Formats and damage


@pytest.mark.parametrize(
    "name, kind", [("a.jpe", "JPEG"), ("a.jfif", "JPEG"), ("a.jp2", "JPEG2000"),
                   ("a.tga", "TGA"), ("a.avif", "AVIF"), ("a", "PNG"), ("a", "GIF"),
                   ("a.dat", "WEBP"), ("photo 1.2", "JPEG"), ("a.JPG_large", "JPEG"),
                   ("a.qoi", "QOI")],
)  # fmt: skip
def test_images_of_any_name_are_found(tmp_path, name, kind):
    write(tmp_path / name, encoded(RED, kind))
    images, inventory = found(readers.folder, tmp_path)
    assert list(images) == [name]
    assert examine(images[name].read())[0] == (20, 20)
    tar = write_tar(tmp_path / "x.tar", [(name, encoded(RED, kind))])
    assert list(found(readers.tar, tar)[0]) == [f"x.tar/{name}"]
    assert len(file_source.FileSource(tmp_path, 3)) == 1


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.heic", b"\0\0\0\x18ftypheic" + bytes(99)),
        ("a", b"\0\0\0\x18ftypheix" + bytes(99)),
        ("a.jxl", b"\xff\x0a" + bytes(99)),
        ("a.svg", b"<svg/>"),
        ("a.exr", b"v/1\x01" + bytes(99)),
        ("a.psd", b"8BPS" + bytes(99)),
        ("a.png", b""),
        ("a.dng", b"II*\0" + bytes(99)),
    ],
)
def test_images_in_other_formats_are_left_out_with_a_reason(tmp_path, name, content):
    write(tmp_path / f"set/{name}", content)
    for k in range(9):
        write(tmp_path / f"set/{k}.png", picture(k))
    report = sources.prepare(section(tmp_path / "set", tmp_path, holdout=3))
    assert list(report["files_left_out"]) == [name]
    assert len(report["files_left_out"][name]) > 10


@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.9, 0.98])
@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"restart_marker_blocks": 4}, {"subsampling": 0},
     {"mode": "CMYK"}, {"mode": "L"}],
)  # fmt: skip
def test_a_cut_scan_is_found_behind_an_end_marker(fraction, options):
    image = cv2.resize(shape("circle", 0), (160, 120))
    image = image // 2 + np.random.default_rng(0).integers(0, 99, image.shape, np.uint8)
    whole = encoded(image, "JPEG", **options)
    examine(whole)
    examine(whole + b"\0" * 50)  # padding by cameras
    with pytest.raises(DecodeError, match="JPEG"):
        examine(cut_jpeg(image, fraction, **options))


def test_a_hole_in_a_scan_is_found():
    image = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
    for options in ({}, {"restart_marker_blocks": 4}):
        whole = encoded(image, "JPEG", **options)
        middle = len(whole) // 2
        with pytest.raises(DecodeError, match="JPEG"):
            examine(whole[:middle] + whole[middle + 900 :])


def test_images_that_would_fill_the_memory_are_refused():
    for content in (faulty_folder.huge_png(), faulty_folder.huge_png(12_000)):
        for refuse in (examine, lambda content: decode(content, 3)):
            with pytest.raises(DecodeError, match="too many pixels"):
                refuse(content)


def test_files_are_read_a_few_at_a_time(tmp_path):
    alive, most, lock = 0, 0, threading.Lock()

    def read():
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return picture(0)

    data = section(tmp_path, tmp_path, threads=2)
    images = [prepared.Found(str(k), read, "train") for k in range(200)]
    made = prepared.FileSet(data, {"train": images}, Inventory())
    for _ in made._examined(images):
        with lock:
            alive -= 1
    assert most <= 8


# Other places and names


def test_tar_files_in_folders_of_splits(tmp_path):
    for k, name in enumerate(["train/0.tar", "Val/0.tar", "other/0.tar", "test-1.tar"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_tar(tmp_path / name, [("0.png", picture(k))])
    write(tmp_path / "train/1.tar.gz", b"\x1f\x8b")
    write(tmp_path / "train/stats.json", "{}")
    write(tmp_path / "train/preview.png", picture(9))
    images, inventory = found(readers.tar, tmp_path)
    assert {name: image.split for name, image in images.items()} == {
        "Val/0.tar/0.png": "validation",
        "other/0.tar/0.png": None,
        "test-1.tar/0.png": "test",
        "train/0.tar/0.png": "train",
    }
    assert inventory.left_out == 2 and inventory.other == {".json": 1}


def test_captions_in_other_files(tmp_path):
    for k in range(5):
        write(tmp_path / f"{k}.JPG", encoded(RED, "JPEG"))
    write(tmp_path / "0.TXT", "upper case")
    write(tmp_path / "1.JPG.txt", "after the suffix")
    write(tmp_path / "2.caption", "another suffix")
    write(tmp_path / "Captions.tsv", "3.JPG\tof a table\n")
    images, inventory = found(readers.folder, tmp_path)
    assert [image.captions for image in images.values()] == [
        "upper case", "after the suffix", "another suffix", "of a table", ""
    ]  # fmt: skip
    assert inventory.other["files of captions"] == 3


def test_a_full_or_locked_place_is_one_line(tmp_path, monkeypatch):
    for k in range(3):
        write(tmp_path / f"set/{k}.png", picture(k))
    write(tmp_path / "a file", "x")
    data = section(tmp_path / "set", tmp_path, dir=str(tmp_path / "a file/tfds"))
    with pytest.raises(DataError, match="a file") as error:
        sources.prepare(data)
    assert "\n" not in str(error.value)


def test_line_breaks_within_a_caption_are_stored_as_one_caption(tmp_path):
    from rq.data import stored_codes

    lines = ("two\nlines\n", "one\u2028line")
    features = np.zeros((1, 1, 1), np.float32)
    codes = features.astype(np.int32)
    no_source = np.zeros(0, np.int32)
    packed = stored_codes._pack(codes, features, np.int32(0), no_source, lines)
    assert b"two lines\none\xe2\x80\xa8line" in packed


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF", "JPEG"])
def test_files_of_full_size_that_end_in_zeros_are_damaged(kind):
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    whole = encoded(noise, kind)
    examine(whole)
    examine(encoded(np.zeros((600, 800, 3), np.uint8), kind))
    for fraction in (0.3, 0.6, 0.9):
        cut = whole[: int(fraction * len(whole))]
        with pytest.raises(DecodeError):
            examine(cut + bytes(len(whole) - len(cut)))


def test_a_png_with_a_wrong_byte_is_damaged():
    whole = bytearray(encoded(RED))
    for place in range(8, len(whole) - 12, 7):
        changed = bytes(whole[:place]) + bytes([whole[place] ^ 4]) + whole[place + 1 :]
        with pytest.raises(DecodeError):
            examine(bytes(changed))
    examine(bytes(whole) + b"junk behind the end")


def test_damage_in_files_to_measure_is_an_error_or_left_out(tmp_path):
    image = cv2.resize(shape("circle", 0), (160, 120))
    write(tmp_path / "0.jpg", encoded(image, "JPEG"))
    write(tmp_path / "1.jpg", cut_jpeg(image))
    assert len(file_source.FileSource(tmp_path, 3)) == 1
    strict = file_source.FileSource(tmp_path, 3, strict=True)
    strict[0]
    with pytest.raises(DataError, match="1.jpg"):
        strict[1]


def test_a_set_prepared_before_there_were_summaries_has_one(tmp_path):
    report = dict(folder=str(tmp_path), splits={"train": 2}, kept={"train": 2})
    report |= dict(converted={"grey": 1}, small=1, left_out=1)
    text = sources.summary(report | dict(files_left_out={"a.png": "damaged"}))
    assert "2 kept (2 train) + 1 left out" in text and "grey: 1" in text
    assert "digits" in sources.summary(dict(folder="digits", splits={"train": 2}))
