# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Cuts the photographs of scikit-image into a folder of small ones, by class.

    python benchmarks/photographs.py --out=photographs
    rq train --config=configs/folder.py:64 --config.data.path=photographs --workdir=RUN

docs/your_own_images.md trains on them. Each photograph is a class; training crops are
of its left two thirds, validation crops of the rest.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random

import skimage.data
from PIL import Image

NAMES = (
    "astronaut",
    "chelsea",
    "coffee",
    "hubble_deep_field",
    "immunohistochemistry",
    "retina",
    "rocket",
    "stereo_motorcycle",
)
SIDE = 96  # pixels of the files
SIZES = (0.2, 0.4)  # of crops, in short sides of the photograph


def crops(image: Image.Image, sizes, number: int, generator: random.Random):
    """Yields square crops of random sizes and places, resized to `SIDE` pixels."""
    for _ in range(number):
        side = min(round(generator.uniform(*sizes)), *image.size)
        left, top = (generator.randint(0, length - side) for length in image.size)
        box = (left, top, left + side, top + side)
        yield image.crop(box).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def write(folder: pathlib.Path, train: int, validation: int) -> int:
    """Writes `folder/SPLIT/CLASS/NUMBER.jpg`, and returns the number of files."""
    written = 0
    for name in NAMES:
        found = getattr(skimage.data, name)()
        image = Image.fromarray(found[0] if isinstance(found, tuple) else found)
        sizes = [min(image.size) * size for size in SIZES]
        middle = 2 * image.width // 3
        for split, number, box in (
            ("train", train, (0, 0, middle, image.height)),
            ("validation", validation, (middle, 0, image.width, image.height)),
        ):
            place = folder / split / name
            place.mkdir(parents=True, exist_ok=True)
            generator = random.Random(f"{split}/{name}")
            part = image.crop(box)
            for i, crop in enumerate(crops(part, sizes, number, generator)):
                crop.save(place / f"{i:04}.jpg", quality=92)
            written += number
    return written


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--train", type=int, default=200, help="crops of a class")
    parser.add_argument("--validation", type=int, default=25, help="crops of a class")
    args = parser.parse_args()
    written = write(args.out, args.train, args.validation)
    print(json.dumps({"images": written, "classes": len(NAMES), "pixels": SIDE}))


if __name__ == "__main__":
    main()
