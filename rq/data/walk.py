# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Lists the files below a folder and recognises images."""

from __future__ import annotations

import collections
import os
import pathlib
import re
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from absl import logging

# Suffixes of image files. Some formats cannot be decoded here: such files are left out
# with a reason instead of being ignored.
SUFFIXES = frozenset(
    ".apng .avif .avifs .bmp .dds .dib .exr .gif .hdr .heic .heif .hif .icns .ico .j2c "
    ".j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .jxl .mpo .pbm .pcx .pfm .pgm "
    ".pjpeg .png .pnm .ppm .psd .qoi .sgi .svg .tga .tif .tiff .webp "
    ".arw .cr2 .cr3 .dng .nef .orf .raf .rw2".split()
)
# Raw files of cameras: decoders would return their small preview.
RAW_SUFFIXES = frozenset(".arw .cr2 .cr3 .dng .nef .orf .raf .rw2".split())
# Files that operating systems and viewers leave in folders and archives.
_SYSTEM_FILES = frozenset([".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini"])
_SYSTEM_FOLDERS = frozenset(
    "__macosx .appledouble .trashes .spotlight-v100 .fseventsd .ipynb_checkpoints "
    "@eadir $recycle.bin lost+found".split()
)
# The first bytes of image files, by format.
_MAGIC = (
    ("JPEG", rb"\xff\xd8\xff"),
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("GIF", rb"GIF8[79]a"),
    ("WebP", rb"RIFF.{4}WEBP"),
    ("TIFF", rb"II[*+]\0|MM\0[*+]"),
    ("BMP", rb"BM.{4}\0{4}"),
    ("AVIF", rb".{4}ftypavi[fs]"),
    ("HEIC", rb".{4}ftyp(hei[cfmsx]|hev[cmsx]|mif1|msf1)"),
    ("JPEG 2000", rb"\0{3}\x0cjP  |\xff\x4f\xff\x51"),
    ("JPEG XL", rb"\xff\x0a|\0{3}\x0cJXL "),
    ("Photoshop", rb"8BPS"),
    ("OpenEXR", rb"v/1\x01"),
    ("Radiance HDR", rb"#\?RADIANCE"),
    ("QOI", rb"qoif"),
    ("DDS", rb"DDS "),
    ("PNM", rb"P[1-7][ \t\r\n]+[0-9#]|P[Ff]\n[0-9]"),
)
MAGIC_BYTES = 32  # read by `image_format`
MAX_VISITS = 8  # to one folder through links, so that walks end


def image_format(head: bytes) -> str | None:
    """Returns the image format of a file by its first bytes, or None."""
    for name, pattern in _MAGIC:
        if re.match(pattern, head, re.DOTALL):
            return name
    return None


def is_image(name: str, head: Callable[[], bytes]) -> bool:
    """Returns whether a file is an image by its suffix or else its first bytes.

    Args:
      name: file name.
      head: returns its first `MAGIC_BYTES`; called only if the suffix is unknown.
    """
    return suffix(name) in SUFFIXES or image_format(head()) is not None


def is_system_file(name: str) -> bool:
    """Returns whether an operating system created a file.

    Examples are `._*`, `.DS_Store`, `Thumbs.db` and all files in `__MACOSX`.
    """
    *folders, file = name.lower().split("/")
    if file.startswith("._") or file in _SYSTEM_FILES:
        return True
    return not _SYSTEM_FOLDERS.isdisjoint(folders)


def suffix(name: str) -> str:
    """Returns the last suffix of a path in lower case ('.png'), or ''."""
    return pathlib.PurePosixPath(name).suffix.lower()


def printable(name: str) -> str:
    """Returns a name as valid UTF-8, with other bytes escaped as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


class File(NamedTuple):
    """A file below a folder.

    Attributes:
      path: path to open.
      name: path relative to the folder, with '/'.
      size: size in bytes.
      problem: why it cannot be read; '' if no problem is known.
    """

    path: pathlib.Path
    name: str
    size: int = 0
    problem: str = ""

    def head(self) -> bytes:
        """Returns the first bytes; b'' if the file cannot be read."""
        try:
            with self.path.open("rb") as stream:
                return stream.read(MAGIC_BYTES)
        except OSError:
            return b""


def walk(root: pathlib.Path) -> Iterator[File]:
    """Yields all files below a folder, sorted by the parts of their paths.

    Links are followed. Yielded as files with a problem are links to a folder that
    contains them, broken links, folders that cannot be opened, and special files.
    """
    root = pathlib.Path(root)
    parents = [_identity(folder) for folder in root.resolve().parents]
    yield from _walk(root, "", parents, collections.Counter())


def _walk(folder, prefix, parents, visits):
    try:
        identity = _identity(folder)
        names = sorted(os.listdir(folder))
    except OSError as error:
        yield File(folder, prefix, problem=f"folder: {error.strerror}")
        return
    if identity in parents:
        yield File(folder, prefix, problem="a link to a folder that contains it")
        return
    visits[identity] += 1
    if visits[identity] > MAX_VISITS:
        problem = f"more than {MAX_VISITS} links to one folder"
        yield File(folder, prefix, problem=problem)
        return
    for base in names:
        path = folder / base
        name = f"{prefix}/{base}" if prefix else base
        try:
            status = path.stat()
        except OSError as error:
            broken = (
                "a broken link" if path.is_symlink() else error.strerror or str(error)
            )
            yield File(path, name, problem=broken)
            continue
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(path, name, [*parents, identity], visits)
        elif stat.S_ISREG(status.st_mode):
            yield File(path, name, status.st_size)
        else:
            yield File(path, name, problem="neither a file nor a folder")


def images(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the images below a folder in the order of `walk`; warns of its problems.

    Files with the suffix of an image are yielded whether they can be decoded or not.
    """
    for file in walk(root):
        if is_system_file(file.name):
            continue
        if file.problem:
            logging.warning("left out %s: %s", printable(file.name), file.problem)
        elif is_image(file.name, file.head):
            yield file.path


def _identity(path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def natural_order(name: str) -> tuple:
    """Returns a sort key that compares numbers in names by value: a2 before a10."""
    parts = re.split(r"([0-9]+)", name)
    return tuple(int(p) if i % 2 else p for i, p in enumerate(parts)), name
