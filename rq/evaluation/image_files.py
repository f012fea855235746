# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads sets of images from folders, and from `.npz` files of ADM's evaluator.

Images are uint8 `[N, H, W, C]`; a set of 50,000 is never in memory as a whole.
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.lib import format as npy

from rq.data import DataError, loader
from rq.data.file_source import FileSource
from rq.parallel import sharding

CHUNK = 1 << 24  # bytes read at once
MEMBER = "arr_0.npy"  # of images


class _OneSize:
    """Reads image files, which must all have the size of the first one."""

    def __init__(self, files: FileSource):
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    @functools.cached_property
    def _shape(self):
        return self._files[0]["image"].shape

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        example = self._files[index]
        if example["image"].shape != self._shape:
            raise DataError(
                f"{self._files.paths[index]} has shape {example['image'].shape}, "
                f"{self._files.paths[0]} {self._shape}: resize them to one size first"
            )
        return example


class ImageSet:
    """Reads the images of a folder or an `.npz`, in order.

    Attributes:
      path: the folder or file.
      number: number of images.
    """

    def __init__(self, path, channels: int = 3):
        """Opens the folder or file.

        Args:
          path: a folder of images of one size, also in sub-folders; or an `.npz` with
            'arr_0', uint8 NHWC.
          channels: number of channels to read a folder's images with.

        Raises:
          DataError: if the path does not exist or has no images.
        """
        self.path = pathlib.Path(path)
        self._files = None
        if self.path.suffix == ".npz" and self.path.is_file():
            try:
                with zipfile.ZipFile(self.path) as archive:
                    self._shape = self._open_archive(archive)[1]
            except zipfile.BadZipFile as error:
                raise DataError(f"{path}: {error}") from error
            self.number = self._shape[0]
        else:
            self._files = FileSource(path, channels, strict=True)
            self.number = len(self._files)

    def _open_archive(self, archive):
        """Returns a stream of the images' bytes, and their shape."""
        if MEMBER not in archive.namelist():
            raise DataError(f"{self.path} has no 'arr_0' of images")
        stream = archive.open(MEMBER)
        version = npy.read_magic(stream)
        old = version == (1, 0)
        read = npy.read_array_header_1_0 if old else npy.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        if dtype != np.uint8 or len(shape) != 4 or fortran or shape[-1] not in (1, 3):
            raise DataError(
                f"{self.path}: 'arr_0' is {dtype} {shape}, not uint8 NHWC with one or "
                "three channels"
            )
        if not shape[0]:
            raise DataError(f"{self.path} has no images")
        return stream, shape

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """Yields all images in order, uint8 `[<= size, H, W, C]`.

        Raises:
          DataError: if a folder has images of several sizes.
        """
        for batch in self.shared_batches(size):
            yield batch["image"][batch["mask"]]

    def shared_batches(self, size: int, mesh=None) -> Iterator[dict]:
        """Yields this process's rows of 'image' and 'mask', as `loader.in_order` does.

        Raises:
          DataError: if a folder has images of several sizes.
          MeshError: if the size does not divide over the devices.
        """
        if self._files is not None:
            files: Any = _OneSize(self._files)  # a source without captions
            yield from loader.in_order(files, None, size, mesh=mesh)
            return
        rows = np.arange(size) if mesh is None else sharding.rows(mesh, size)
        for images in self._from_archive(size):
            last = len(images) - 1
            yield {"image": images[np.minimum(rows, last)], "mask": rows <= last}

    def _from_archive(self, size):
        one = int(np.prod(self._shape[1:]))
        with zipfile.ZipFile(self.path) as archive:
            stream, _ = self._open_archive(archive)
            for start in range(0, self.number, size):
                count = min(size, self.number - start)
                data = stream.read(count * one)
                if len(data) != count * one:
                    raise DataError(f"{self.path} ends within image {start + count}")
                images = np.frombuffer(data, np.uint8)
                yield images.reshape(count, *self._shape[1:])

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the contents of all files, without their names."""
        digest = hashlib.sha256()
        files = [self.path] if self._files is None else self._files.paths
        for path in files:
            with path.open("rb") as stream:
                while data := stream.read(CHUNK):
                    digest.update(data)
        return digest.hexdigest()
