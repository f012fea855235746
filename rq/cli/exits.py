# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Exit codes that launchers can rely on, and errors of the user in one line."""

from __future__ import annotations

import contextlib
import errno
import sys
import traceback
from collections.abc import Iterator

from absl import logging

from rq.config import ConfigError
from rq.config.command_line import one_line

LOST = 75  # exit code EX_TEMPFAIL: other processes or devices are gone; try again
PATIENCE = 10.0  # seconds that a failing process gives the others to fail too

# A file or disk that only the user can put right.
_FILE_ERRORS = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def is_user_error(error: Exception) -> bool:
    """Returns whether an error is the user's: one line says all, and a remedy."""
    from rq.data import DataError
    from rq.parallel.sharding import MeshError
    from rq.training.checkpoint import CheckpointError
    from rq.training.loop import NonFiniteLossError

    ours = (CheckpointError, ConfigError, DataError, MeshError, NonFiniteLossError)
    on_disk = isinstance(error, OSError) and error.errno in _DISK_ERRORS
    return isinstance(error, ours + _FILE_ERRORS) or on_disk


def print_error(text: str, debug: bool) -> None:
    """Prints the current error in a line, with `debug` after its traceback."""
    if debug:
        traceback.print_exc()
    print(f"error: {text}", file=sys.stderr)


@contextlib.contextmanager
def exit_codes(debug: bool = False) -> Iterator[None]:
    """Ends this process with a code that launchers understand, where the body fails.

    1, after a line, for errors of the user. Other exceptions of one process alone are
    raised. Of several processes 1 also where all of them fail, or the memory does not
    suffice: the next try would fail alike. `LOST` where others, or devices, are gone.
    """
    try:
        yield
    except Exception as error:
        import jax

        from rq.parallel import processes

        if is_user_error(error):
            print_error(one_line(error), debug)
            processes.barrier_within("an end by mistake", PATIENCE)
            processes.exit_now(1)
        if not jax.distributed.is_initialized():
            raise
        logging.exception("this process has failed")
        alike = processes.barrier_within("an end by failure", PATIENCE)
        memory = "RESOURCE_EXHAUSTED" in str(error)
        processes.exit_now(1 if alike or memory else LOST)
