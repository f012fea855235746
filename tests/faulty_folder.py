# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Builds a folder of images with every known fault of image folders.

    python tests/faulty_folder.py DIR

builds DIR/shapes, prepares it, and prints the summary that the guide shows. The picture
in the guide is the `first_images.png` that the summary names.
"""

import io
import os
import pathlib
import struct
import sys
import zlib

import cv2
import numpy as np
from PIL import Image

CLASSES = ("circle", "square", "2 lines", "10 lines", "triangle")
EACH = 8  # intact images of a class
SIDE = 48


def shape(name: str, seed: int) -> np.ndarray:
    """Returns a picture of one of the classes, uint8 `[48, 48, 3]`."""
    rng = np.random.default_rng((CLASSES.index(name), seed))
    image = np.full((SIDE, SIDE, 3), rng.integers(150, 255, 3), np.uint8)
    color = tuple(int(c) for c in rng.integers(0, 150, 3))
    x, y = (int(v) for v in rng.integers(18, 30, 2))
    size = int(rng.integers(8, 16))
    if name == "circle":
        cv2.circle(image, (x, y), size, color, -1)
    elif name == "square":
        cv2.rectangle(image, (x - size, y - size), (x + size, y + size), color, -1)
    elif name == "triangle":
        points = [(x, y - size), (x - size, y + size), (x + size, y + size)]
        cv2.fillPoly(image, [np.array(points)], color)
    else:
        number = int(name.split()[0])
        for k in range(number):
            place = int((k + 1) * SIDE / (number + 1))
            cv2.line(image, (place, 4), (place, SIDE - 5), color, 2)
    return image


def encoded(image: np.ndarray, kind: str = "PNG", mode: str = "", **options) -> bytes:
    """Returns the bytes of an image file."""
    out = io.BytesIO()
    picture = Image.fromarray(image)
    (picture.convert(mode) if mode else picture).save(out, kind, **options)
    return out.getvalue()


def cut_jpeg(image: np.ndarray, fraction: float = 0.6, **options) -> bytes:
    """Returns a JPEG with a truncated scan and an end marker."""
    whole = encoded(image, "JPEG", quality=95, **options)
    return whole[: int(fraction * len(whole))] + b"\xff\xd9"


def huge_png(side: int = 60_000) -> bytes:
    """Returns a PNG of a few bytes whose header declares 3.6 billion pixels."""

    def chunk(kind, body):
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(side + 1))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def write(path: pathlib.Path, content: bytes | str) -> None:
    """Writes a file and creates its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def odd_files(image: np.ndarray) -> dict[str, bytes]:
    """Returns files by name that are converted or left out with a reason."""
    deep = image.astype(np.uint16)
    grey = image.mean(-1)
    strip = np.tile(image[:1], (1, 167, 1))
    return {
        "circle/alpha.png": encoded(np.dstack([image, image[..., 0]])),
        "circle/cmyk.jpg": encoded(image, "JPEG", "CMYK"),
        "circle/cut.jpg": cut_jpeg(image),
        "circle/cut_progressive.jpg": cut_jpeg(image, progressive=True),
        "circle/dark.png": cv2.imencode(".png", deep)[1].tobytes(),
        "circle/deep.png": cv2.imencode(".png", deep * 257)[1].tobytes(),
        "circle/empty.jpg": b"",
        "circle/float.tif": encoded((grey / 255).astype(np.float32), "TIFF"),
        "circle/grey_alpha.png": encoded(image, "PNG", "LA"),
        "circle/huge.png": huge_png(),
        "circle/int32.tif": encoded(grey.astype(np.int32), "TIFF"),
        "circle/int32_out_of_range.tif": encoded(
            grey.astype(np.int32) * 100_000, "TIFF"
        ),
        "circle/no_suffix": encoded(image, "JPEG"),
        "circle/photo.heic": b"\0\0\0\x18ftypheic" + bytes(200),
        "circle/photo.jfif": encoded(255 - image, "JPEG"),
        "circle/photo.jp2": encoded(image, "JPEG2000"),
        "circle/photo.jpe": encoded(image // 2, "JPEG"),
        "circle/photo.nef": b"II*\0" + bytes(200),
        "circle/photo.tga": encoded(image, "TGA"),
        "circle/signed.tif": encoded((grey / 127.5 - 1).astype(np.float32), "TIFF"),
        "circle/strip.png": encoded(strip),
        "circle/without_its_end.jpg": encoded(image, "JPEG")[:500],
    }


def build(root: pathlib.Path, outside: pathlib.Path) -> None:
    """Builds the folder at `root`; one class is a link to a folder in `outside`."""
    for name in CLASSES:
        folder = outside if name == "triangle" else root
        for k in range(EACH):
            content = encoded(shape(name, k))
            write(folder / name / f"{name} {k}.0 (clean).png", content)
    os.symlink(outside / "triangle", root / "triangle")
    os.symlink(root, root / "square" / "loop")
    os.symlink(root / "nowhere.png", root / "square" / "broken.png")
    (root / "no images").mkdir()
    for name, content in odd_files(shape("circle", 99)).items():
        write(root / name, content)
    with open(os.fsencode(root / "square") + b"/caf\xe9.png", "wb") as file:
        file.write(encoded(shape("square", 98)))
    write(root / "square/copy.png", encoded(shape("square", 0)))

    write(root / "square/._square 0.0 (clean).png", b"\0\x05\x16\x07" + bytes(80))
    write(root / "__MACOSX/square/._square 1.0 (clean).png", b"\0\x05\x16\x07")
    write(root / ".DS_Store", b"\0\0\0\1Bud1")
    write(root / "circle/Thumbs.db", b"\xd0\xcf\x11\xe0")
    write(root / "notes.md", "Taken on Sunday.")

    write(root / "square/square 0.0 (clean).txt", "one\u2028caption\nanother\u0085one")
    write(root / "square/gone.txt", "of no image")
    rows = [
        "file;caption",
        "circle\\circle 0.0 (clean).png;ein gr\u00fcner Kreis",
        'circle/circle 1.0 (clean).png;"a circle;\r\non two lines"',
        f"circle/circle 2.0 (clean).png;{'very ' * 30_000}long",
        "circle/gone.png;of no image",
    ]
    write(root / "captions.csv", "\r\n".join(rows).encode("cp1252"))


def main(place: str) -> None:
    """Builds and prepares the folder, and prints the summary."""
    from absl import flags

    from rq.config import default
    from rq.data import sources

    flags.FLAGS.mark_as_parsed()
    place = pathlib.Path(place)
    build(place / "shapes", place / "elsewhere")
    data = default().data
    settings = dict(name="folder", path=str(place / "shapes"), holdout=8)
    data.update(settings | dict(dir=str(place / "tfds"), resolution=32))
    print(sources.summary(sources.prepare(data)))


if __name__ == "__main__":
    main(sys.argv[1])
