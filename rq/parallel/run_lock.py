# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Locks a directory, so that two programs never write to it at once."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

from absl import logging
from etils import epath

from rq.config import ConfigError
from rq.parallel import processes

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

FILE = ".lock"


@contextlib.contextmanager
def lock(directory) -> Iterator[None]:
    """Locks a directory; the operating system unlocks it when the process ends.

    Process 0 holds the lock for all processes. Directories in buckets cannot be locked:
    this is logged.

    Args:
      directory: of a run or of a sampling job; created if missing.

    Raises:
      ConfigError: if another program holds the lock.
    """
    directory = epath.Path(directory)
    if "://" in os.fspath(directory) or fcntl is None:
        logging.info("%s cannot be locked: run one program at a time in it", directory)
        yield
        return
    file = processes.run_on_process_0(lambda: _acquire(directory))
    try:
        yield
    finally:
        if file is not None:
            file.close()


def _acquire(directory: epath.Path):
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = open(directory / FILE, "a+")
    except OSError as error:
        raise ConfigError(
            f"{directory} cannot be written ({error.strerror}): use another --workdir"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another program"
        file.close()
        raise ConfigError(
            f"{directory} is in use by {holder}: wait until it ends, stop it, or "
            "use another directory"
        ) from None
    except OSError as error:
        logging.warning("%s cannot be locked (%s)", directory, error)
    else:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    return file
