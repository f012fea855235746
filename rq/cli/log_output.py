# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""What a command writes to its standard error: short lines, or raw logs to debug."""

from __future__ import annotations

import io
import logging as standard
import os
import sys
import time

import tqdm
from absl import logging

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
DATE = "%Y-%m-%d %H:%M:%S"


class _Lines(standard.Handler):
    """Writes messages of rq, and warnings and errors of any library.

    On a terminal they appear above progress bars; elsewhere they begin with the time.
    """

    def __init__(self):
        super().__init__()
        self._on_terminal = sys.stderr.isatty()

    def filter(self, record: standard.LogRecord) -> bool:
        """Returns whether to write a message."""
        is_ours = os.path.abspath(record.pathname).startswith(_OURS)
        return is_ours or record.levelno >= standard.WARNING

    def format(self, record: standard.LogRecord) -> str:
        """Returns the text of a message, with its level unless it is information."""
        text = super().format(record)
        if record.levelno >= standard.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        if self._on_terminal:
            return text
        return f"{time.strftime(DATE, time.localtime(record.created))} {text}"

    def emit(self, record: standard.LogRecord) -> None:
        """Writes a message."""
        try:
            if self._on_terminal:
                tqdm.tqdm.write(self.format(record), file=sys.stderr)
            else:
                print(self.format(record), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


def start(debug: bool) -> None:
    """Chooses what is written to standard error, for the whole process.

    Standard output escapes what its encoding lacks, as standard error does: names of
    files may be any bytes.

    Args:
      debug: writes all messages of all libraries as absl does, and no bars.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if debug:
        from rq import progress

        progress.disable_bars()
        logging.use_absl_handler()
    elif not any(isinstance(x, _Lines) for x in standard.root.handlers):
        for handler in list(standard.root.handlers):
            if type(handler) is standard.StreamHandler:  # of a message at an import
                standard.root.removeHandler(handler)
        standard.root.addHandler(_Lines())
    logging.set_verbosity(logging.INFO)
