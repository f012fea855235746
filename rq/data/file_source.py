# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads image files on disk by index."""

from __future__ import annotations

import pathlib

import numpy as np
from absl import logging

from rq.data import DataError, walk
from rq.data.damage import check_intact
from rq.data.decode import DecodeError, decode


class FileSource:
    """Image files, read by index without preparing them; 'label' is 0.

    Files that cannot be decoded are left out with a warning. If `strict`, reading them
    is an error instead.

    Attributes:
      paths: paths of the files.
    """

    def __init__(self, path, channels: int, strict: bool = False):
        """Opens a file, or all images in a folder.

        Raises:
          DataError: if there is no image, or none can be decoded.
        """
        path, self._channels = pathlib.Path(path), channels
        if not path.exists():
            raise DataError(f"{path}: there is no such file or folder")
        found = list(walk.images(path)) if path.is_dir() else [path]
        self.paths = [file for file in found if strict or self._is_readable(file)]
        if not self.paths:
            raise DataError(f"{path}: none of {len(found)} files is an image")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        try:
            image = self._decode(self.paths[index])
        except DecodeError as error:
            raise DataError(f"{self.paths[index]}: {error}") from error
        return {"image": image, "label": np.int32(0)}

    def read(self, index: int) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        """Returns an example and an empty tuple of captions."""
        return self[index], ()

    def _decode(self, path):
        encoded = path.read_bytes()
        image = decode(encoded, self._channels)  # first, since it checks the size
        check_intact(encoded)
        return image

    def _is_readable(self, path):
        try:
            self._decode(path)
        except (DecodeError, OSError) as error:
            logging.warning("left out %s: %s", path, error)
            return False
        return True
