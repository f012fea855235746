# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sets of images on disk: folders, and the `.npz` of ADM's evaluator, as streams.

Images are uint8 `[N, H, W, C]`; a set of 50,000 is never in memory as a whole.
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
import zipfile
from collections.abc import Iterator

import numpy as np
from numpy.lib import format as npy

from rq.data import DataError, loader
from rq.data.file_source import FileSource
from rq.parallel import sharding

CHUNK = 1 << 24  # bytes read at once
MEMBER = "arr_0.npy"  # of images


class _OneSize:
    """Image files that must all have the size of the first one."""

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
    """Images of a folder or an `.npz`, in order.

    Attributes:
      path: of it.
      number: of images.
    """

    def __init__(self, path, channels: int = 3):
        """Opens it.

        Args:
          path: a folder of images (of one size; sub-folders too), or an `.npz` with
            'arr_0', uint8 NHWC.
          channels: that a folder's images are read with.

        Raises:
          DataError: where there is nothing, or no images.
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
        """A stream of its images' bytes, and their shape."""
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
        """Yields uint8 `[<= size, H, W, C]`, all images in order.

        Raises:
          DataError: where a folder has images of several sizes.
        """
        for batch in self.shared_batches(size):
            yield batch["image"][batch["mask"]]

    def shared_batches(self, size: int, mesh=None) -> Iterator[dict]:
        """Yields 'image' and 'mask' as `rq.data.loader.in_order`, each process its own.

        Raises:
          DataError: where a folder has images of several sizes.
          MeshError: where the size does not divide over the devices.
        """
        if self._files is not None:
            yield from loader.in_order(_OneSize(self._files), None, size, mesh=mesh)
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
        """SHA-256 of all bytes that it is read from, and of nothing else."""
        digest = hashlib.sha256()
        files = [self.path] if self._files is None else self._files.paths
        for path in files:
            with path.open("rb") as stream:
                while data := stream.read(CHUNK):
                    digest.update(data)
        return digest.hexdigest()
