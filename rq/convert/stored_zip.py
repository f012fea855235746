# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Opens the uncompressed zip archives that `torch.save` and `np.savez` write."""

from __future__ import annotations

import os
import struct
import zipfile

# What `zipfile` raises on damaged archives: a wrong checksum, a header cut short, a
# version or encryption that it does not know, an offset that no file can have.
ERRORS = (
    zipfile.BadZipFile,
    struct.error,
    RuntimeError,  # NotImplementedError too
    EOFError,
    OSError,
    OverflowError,
)


def open_stored_zip(path) -> zipfile.ZipFile:
    """Returns the archive, whose members are together no larger than the file.

    So nothing that is read from it needs more memory than the file has bytes.

    Raises:
      ValueError: if members are compressed or claim more bytes than there are.
      zipfile.BadZipFile: if the file is no archive, or damaged.
    """
    archive = zipfile.ZipFile(path)
    members = archive.infolist()
    if any(
        member.compress_type != zipfile.ZIP_STORED
        or member.compress_size != member.file_size
        for member in members
    ):
        archive.close()
        raise ValueError("members are compressed")
    if sum(member.file_size for member in members) > os.path.getsize(path):
        archive.close()
        raise ValueError("members are larger than the file")
    return archive


def one_line(error: Exception) -> str:
    """Returns an error's message, which may quote the file, on one short line."""
    return " ".join(str(error).split())[:200]
