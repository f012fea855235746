# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Image sets by TFDS, prepared once as ArrayRecord: sources, augmentation, decoding.

A source gives {'image': uint8 [H, W, C], 'label': int32} by index; what becomes of an
image in training is a pure function of the image and a random generator.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import cv2
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from rq.data import DataError, digits, emoji

cv2.setNumThreads(0)  # threads read ahead already, an image each

# Sets that prepare themselves.
BUILT_IN = {"digits": digits.prepare, "emoji": emoji.prepare}


class ImageSource:
    """One split of a prepared TFDS set, decoded to `channels` channels."""

    def __init__(self, records, name: str, channels: int):
        self._records, self._name, self._channels = records, name, channels

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        record = self._records[index]
        try:
            image = decode(record["image"], self._channels)
        except (OSError, cv2.error) as error:
            raise DataError(f"{self._name}, image {index}: {error}") from error
        return {"image": image, "label": np.int32(record.get("label", 0))}


def source(data, split: str) -> ImageSource:
    """Opens a split of the set that the `data` section of a config names.

    Built-in sets are prepared on first use.

    Raises:
      DataError: where the set is unknown, not prepared (with the command that does it),
        prepared in another format (likewise), without images, or without such a split.
    """
    name, folder = data.name, data.dir or None
    if name in BUILT_IN:
        builder = BUILT_IN[name](folder)
    else:
        builder = _find(name, folder)
    # What lies on disk decides, a converted copy included; the code knows of neither.
    builder = tfds.builder_from_directory(builder.data_dir)
    _check(builder, name, split)
    records = builder.as_data_source(
        split,
        decoders={"image": tfds.decode.SkipDecoding()},
        file_format="array_record",
    )
    return ImageSource(records, f"{name} {split}", data.channels)


def _find(name, folder):
    try:
        builder = tfds.builder(name, data_dir=folder)
    except tfds.core.registered.DatasetNotFoundError:
        raise DataError(
            f"data.name={name!r} is neither a TFDS set nor one of {sorted(BUILT_IN)}"
        ) from None
    except (AssertionError, ValueError) as error:  # a bad name, an unknown version
        reason = " ".join(str(error).split())
        raise DataError(f"data.name={name!r}: {reason}") from error
    # Not `info.splits`: with a network TFDS fills them in for sets that are not here.
    if not builder.is_prepared():
        where = f" --data_dir={folder}" if folder else ""
        raise DataError(
            f"{name} is not prepared in {builder.data_dir}; run: "
            f"tfds build {name} --file_format=array_record{where}"
        )
    return builder


def _check(builder, name, split):
    info = builder.info
    if tfds.core.FileFormat.ARRAY_RECORD not in info.available_file_formats():
        # Converted in place: with --out_dir TFDS leaves out the set's description.
        raise DataError(
            f"{builder.data_dir} holds {info.file_format.value}; add ArrayRecord: "
            "pip install apache-beam && "
            "python -m tensorflow_datasets.scripts.convert_format "
            f"--dataset_version_dir={builder.data_dir} --out_file_format=array_record"
        )
    if "image" not in info.features:
        raise DataError(f"{name} has no 'image' but {sorted(info.features)}")
    if unknown := {part.split("[")[0] for part in split.split("+")} - set(info.splits):
        raise DataError(
            f"{name} has splits {sorted(info.splits)}, not {sorted(unknown)}"
        )


def decode(encoded: bytes, channels: int) -> np.ndarray:
    """PNG, JPEG and what else OpenCV or Pillow read, to uint8 `[H, W, channels]`.

    Transparency is dropped, CMYK is converted.

    Raises:
      OSError: on bytes that are no image.
    """
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flag)
    if image is None:  # CMYK JPEG, GIF: Pillow reads more
        mode = "L" if channels == 1 else "RGB"
        image = np.asarray(Image.open(io.BytesIO(encoded)).convert(mode))
    elif channels == 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return image.reshape(*image.shape[:2], channels)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear with antialiasing: areas where it shrinks, as near to Pillow's."""
    shrinks = height < image.shape[0] or width < image.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(image, (width, height), interpolation=how)
    return resized.reshape(height, width, image.shape[-1])


def _short_side(image, side):
    height, width = image.shape[:2]
    scale = side / min(height, width)
    return resize(
        image, max(side, round(height * scale)), max(side, round(width * scale))
    )


def _flip(image, rng):
    return image[:, ::-1] if rng.random() < 0.5 else image


def _crop(image, top, left, height, width):
    return image[top : top + height, left : left + width]


def check_size(image, side, rng):
    """No change: the image must be `side` x `side` already.

    Raises:
      DataError: where it is not.
    """
    del rng
    if image.shape[:2] != (side, side):
        raise DataError(
            f"an image of {image.shape[0]} x {image.shape[1]} with data.augment='none' "
            f"and data.resolution={side}; 'center' resizes and crops"
        )
    return image


def center(image, side, rng):
    """Resizes the short side, crops the centre (LSUN)."""
    del rng
    image = _short_side(image, side)
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return _crop(image, top, left, side, side)


def crop_flip(image, side, rng):
    """Resizes the short side, crops at random, flips half of the time (ImageNet)."""
    image = _short_side(image, side)
    top = rng.integers(image.shape[0] - side + 1)
    left = rng.integers(image.shape[1] - side + 1)
    return _flip(_crop(image, top, left, side, side), rng)


def resized_crop_flip(image, side, rng):
    """A random square of 0.75 to 1 of the area, resized, flipped half the time (FFHQ).

    As large as the image allows where it is far from square.
    """
    height, width = image.shape[:2]
    edge = round((rng.uniform(0.75, 1.0) * height * width) ** 0.5)
    edge = min(edge, height, width)
    top, left = rng.integers(height - edge + 1), rng.integers(width - edge + 1)
    return _flip(resize(_crop(image, top, left, edge, edge), side, side), rng)


Transform = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
AUGMENTATIONS: dict[str, Transform] = {
    "none": check_size,
    "center": center,
    "crop_flip": crop_flip,
    "resized_crop_flip": resized_crop_flip,
}


def transforms(data) -> tuple[Transform, Transform]:
    """What happens to images in training, and in evaluation (no randomness)."""
    augment = AUGMENTATIONS[data.augment]
    return augment, check_size if data.augment == "none" else center
