# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests that archives from elsewhere are unpacked only into their folder."""

import gzip
import io
import os
import shutil
import tarfile

import pytest

from rq.convert import archive


def packed(path, members, mode="w:gz"):
    """Writes an archive of (name, contents or changes of the header)."""
    with tarfile.open(path, mode) as out:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, dict):
                for field, value in content.items():
                    setattr(info, field, value)
                content = b""
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return path


def unpack(path, folder):
    return archive.unpack(path, folder, lambda name: name.endswith(".pt"))


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_only_wanted_plain_files_are_written(tmp_path, mode):
    members = [
        ("./a/model.pt", b"1" * 3000),
        ("a/b/model.pt", b"2"),
        ("a/notes.txt", b"3" * 5000),
        ("link.pt", dict(type=tarfile.SYMTYPE, linkname="/etc/passwd")),
        ("hard.pt", dict(type=tarfile.LNKTYPE, linkname="a/model.pt")),
        ("fifo.pt", dict(type=tarfile.FIFOTYPE)),
        ("folder.pt", dict(type=tarfile.DIRTYPE)),
        ("long/" * 40 + "model.pt", b"4" * 512),
    ]
    path, folder = packed(tmp_path / "x.tar.gz", members, mode), tmp_path / "out"
    found = unpack(path, folder)
    assert [p.relative_to(folder).as_posix() for p in found] == [
        "a/model.pt",
        "a/b/model.pt",
        "long/" * 40 + "model.pt",
    ]
    written = [p for p in folder.rglob("*") if not p.is_dir()]
    assert sorted(written) == sorted(found)
    assert found[0].read_bytes() == b"1" * 3000


@pytest.mark.parametrize(
    "name", ["../out.pt", "a/../../out.pt", "/tmp/out.pt", "..\\out.pt", "../x.txt"]
)
def test_paths_that_lead_out_are_refused(tmp_path, name):
    path = packed(tmp_path / "x.tar.gz", [("a.pt", b"1"), (name, b"2")])
    with pytest.raises(ValueError, match="leads out of it") as info:
        unpack(path, tmp_path / "inner/out")
    assert "\n" not in str(info.value)
    assert sorted(os.listdir(tmp_path)) == ["inner", "x.tar.gz"]
    assert os.listdir(tmp_path / "inner/out") == ["a.pt"]


def test_bombs_are_refused_before_they_fill_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "_ALWAYS", 2**16)
    big = bytes(2**24)
    for name in ("big.pt", "big.txt"):  # also where it is not unpacked
        path = packed(tmp_path / "x.tar.gz", [(name, big)])
        with pytest.raises(ValueError, match="larger than"):
            unpack(path, tmp_path / name)
    with gzip.open(path, "wb") as file:  # a long name of 8 GB
        info = tarfile.TarInfo("././@LongLink")
        info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**33 - 1
        file.write(info.tobuf(tarfile.GNU_FORMAT) + big[: 2**20])
    with pytest.raises(ValueError, match="a header of 8589934592 bytes"):
        unpack(path, tmp_path / "name")


def test_files_that_do_not_fit_are_refused_before_they_are_written(
    tmp_path, monkeypatch
):
    path = packed(tmp_path / "x.tar.gz", [("a.pt", bytes(1000))])
    usage = shutil.disk_usage(tmp_path)._replace(free=999)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="space left on the disk"):
        unpack(path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_damaged_archives_are_one_line(tmp_path):
    path = packed(tmp_path / "x.tar.gz", [("a.pt", os.urandom(10**5))])
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    flipped_end = bytearray(whole)
    flipped_end[-6] ^= 1  # of the checksum
    for number, data in enumerate(
        (b"", b"hello", whole[:-2000], whole[:30], flipped, flipped_end)
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"x\.tar\.gz is") as info:
            unpack(path, tmp_path / f"out_{number}")
        assert "\n" not in str(info.value)


def test_a_file_that_is_in_it_twice_is_refused(tmp_path):
    path = packed(tmp_path / "x.tar.gz", [("a.pt", b"1"), ("a.pt", b"2")])
    with pytest.raises(FileExistsError):
        unpack(path, tmp_path / "out")
