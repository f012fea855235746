# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Exit codes for launchers, and user errors in one line."""

from __future__ import annotations

import contextlib
import errno
import sys
import traceback
from collections.abc import Iterator

from absl import logging

from rq.config import ConfigError
from rq.config.command_line import one_line

LOST = 75  # exit code EX_TEMPFAIL: other processes or devices are gone, so try again
PATIENCE = 10.0  # seconds that a failing process waits for the others to fail too

# Errors of files and disks that only the user can fix.
_FILE_ERRORS = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def is_user_error(error: Exception) -> bool:
    """Returns whether the user can fix an error, so that its message is enough."""
    from rq.data import DataError
    from rq.parallel.sharding import MeshError
    from rq.training.checkpoint import CheckpointError
    from rq.training.loop import NonFiniteLossError

    ours = (CheckpointError, ConfigError, DataError, MeshError, NonFiniteLossError)
    on_disk = isinstance(error, OSError) and error.errno in _DISK_ERRORS
    return isinstance(error, ours + _FILE_ERRORS) or on_disk


def print_error(text: str, debug: bool) -> None:
    """Prints the current error in one line, after its traceback if `debug`."""
    if debug:
        traceback.print_exc()
    print(f"error: {text}", file=sys.stderr)


@contextlib.contextmanager
def exit_codes(debug: bool = False) -> Iterator[None]:
    """Exits with a code that launchers understand if the body raises an exception.

    Exit code 1: do not retry. User errors, in one line; with several processes also
    failures of all of them, and lack of memory. Exit code `LOST`: other processes or
    devices are gone, retry. With one process, exceptions that are not user errors are
    raised.
    """
    try:
        yield
    except Exception as error:
        import jax

        from rq.parallel import processes

        if is_user_error(error):
            print_error(one_line(error), debug)
            processes.barrier_within("exit after a user error", PATIENCE)
            processes.exit_now(1)
        if not jax.distributed.is_initialized():
            raise
        logging.exception("this process has failed")
        all_failed = processes.barrier_within("exit after a failure", PATIENCE)
        no_memory = "RESOURCE_EXHAUSTED" in str(error)
        processes.exit_now(1 if all_failed or no_memory else LOST)
