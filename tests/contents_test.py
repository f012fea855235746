# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests that a data set is identified by its contents, not its location."""

import hashlib
import os
import shutil
import time

import numpy as np
import pytest

from rq.config import default
from rq.data import contents, digits, sources


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rq" / "contents"


@pytest.fixture
def read(monkeypatch):
    """Returns the names of files whose contents are read, in order."""
    names, compute = [], contents._hash

    def counted(path):
        names.append(path.name)
        return compute(path)

    monkeypatch.setattr(contents, "_hash", counted)
    return names


def write(path, content: bytes, age: float = 3600.0):
    """Writes a file with an age of `age` seconds."""
    path.write_bytes(content)
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_file_is_read_once(tmp_path, read, monkeypatch):
    monkeypatch.setattr(contents, "MIN_AGE", 0.0)
    files = [write(tmp_path / name, name.encode()) for name in "ab"]
    for _ in range(3):
        assert contents.hash_files(files) == [sha(b"a"), sha(b"b")]
    assert sorted(read) == ["a", "b"]
    more = [*files, write(tmp_path / "c", b"c")]
    assert contents.hash_files(more, threads=0)[-1] == sha(b"c")
    assert read[2:] == ["c"]


def test_a_file_replaced_by_one_of_equal_size_and_time_is_read_again(
    tmp_path, read, monkeypatch
):
    monkeypatch.setattr(contents, "MIN_AGE", 0.0)
    path = write(tmp_path / "a", b"one")
    before = path.stat().st_mtime_ns
    assert contents.hash_files([path]) == [sha(b"one")]
    path.write_bytes(b"two")
    os.utime(path, ns=(before, before))
    assert contents.hash_files([path]) == [sha(b"two")]
    assert read == ["a", "a"]


def test_hashes_of_files_that_have_just_changed_are_not_kept(tmp_path, read, cache):
    path = write(tmp_path / "a", b"one", age=0.0)
    assert contents.hash_files([path]) == contents.hash_files([path])
    assert read == ["a", "a"] and not cache.exists()


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"a": 3}'])
def test_a_damaged_cache_is_rewritten(tmp_path, cache, damage, monkeypatch):
    monkeypatch.setattr(contents, "MIN_AGE", 0.0)
    path = write(tmp_path / "a", b"one")
    contents.hash_files([path])
    (file,) = cache.iterdir()
    file.write_bytes(damage)
    assert contents.hash_files([path]) == [sha(b"one")]
    assert list(cache.iterdir()) == [file]


def test_without_a_place_to_write_hashes_are_computed_each_time(tmp_path, cache, read):
    cache.parent.parent.mkdir(exist_ok=True)
    cache.parent.write_text("no folder")
    path = write(tmp_path / "a", b"one")
    for _ in range(2):
        assert contents.hash_files([path]) == [sha(b"one")]
    assert read == ["a", "a"]


# Data sets


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    digits.prepare(str(folder))
    return folder


def fingerprint(folder, split="train"):
    data = default().data
    data.update(dict(name="digits", dir=str(folder), channels=1, num_classes=10))
    return sources.fingerprint(data, split)


def test_a_copy_of_a_data_set_elsewhere_is_the_same_and_each_split_another(
    prepared, tmp_path
):
    shutil.copytree(prepared, tmp_path / "copy")
    assert fingerprint(tmp_path / "copy") == fingerprint(prepared)
    splits = ["train", "validation", "train+validation", "train[:10%]"]
    assert len({fingerprint(prepared, split) for split in splits}) == 4


@pytest.mark.parametrize("seed", range(3))
def test_any_changed_byte_is_noticed_though_sizes_and_times_stay(
    prepared, tmp_path, seed
):
    shutil.copytree(prepared, tmp_path / "copy")
    before = fingerprint(tmp_path / "copy")
    path = next((tmp_path / "copy").rglob("digits-train.array_record*"))
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[np.random.default_rng(seed).integers(len(content))] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprint(tmp_path / "copy") != before


def test_files_that_hold_no_data_change_nothing(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "copy")
    before = fingerprint(tmp_path / "copy")
    folder = next((tmp_path / "copy").rglob("features.json")).parent
    (folder / "notes.txt").write_text("mine")
    assert fingerprint(tmp_path / "copy") == before
