# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Shows how far a long computation is: a bar on a terminal, else lines in the log."""

from __future__ import annotations

import collections
import math
import os
import sys
import time

import jax
import tqdm
from absl import logging

from rq.parallel import processes

SECONDS = 10.0  # between lines in the log, unless a number of steps is given
WINDOW = 30.0  # seconds that the shown rate is a mean over
COLUMNS = 79  # of a terminal that does not say how many it has

_bars_on_terminals = True


def disable_bars() -> None:
    """Writes lines in the log from now on, on terminals too."""
    global _bars_on_terminals
    _bars_on_terminals = False


class Bar:
    """Shows the progress of a computation; a context manager.

    Process 0 shows it, the others do not. On a terminal the bar is redrawn at most ten
    times per second. Elsewhere a line is logged from time to time, and at the end.

    Attributes:
      done: number of steps done.
      total: number of steps in all; 0 if unknown.
      note: shown before the rate, such as 'loss 0.123'.
    """

    def __init__(
        self,
        name: str,
        total: int = 0,
        unit: str = "images",
        *,
        done: int = 0,
        size: int = 1,
        every: int = 0,
    ):
        """Shows the bar.

        Args:
          name: what is computed; the beginning of the bar and of each line.
          total, done: see the attributes.
          unit: what is counted for the rate; 'B' are bytes.
          size: number of units in a step.
          every: steps between lines in the log; 0: `SECONDS` between them.
        """
        self.name, self.total, self.done, self.note = name, total, done, ""
        self._unit, self._size, self._every = unit, size, every
        self._logged = time.monotonic()
        self._finished = False
        self._restart()
        shown = not jax.distributed.is_initialized() or processes.is_process_0()
        is_bar = shown and _bars_on_terminals and sys.stderr.isatty()
        self._logs = shown and not is_bar
        self._terminal = _Terminal(self) if is_bar else None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self.close(kind is None)

    def close(self, finished: bool = True) -> None:
        """Ends the bar, which stays on the terminal; `finished`: nothing is left."""
        self._finished = finished
        if self._terminal is not None:
            self._terminal.close()
        elif self._logs and finished:
            self._log()

    def _restart(self) -> None:
        """Starts the clock: rates and the time left are of later steps alone."""
        self._start = time.monotonic(), self.done
        self._recent = collections.deque([self._start])

    def reset(self, total: int) -> None:
        """Starts from 0 with another total."""
        self.total, self.done = total, 0
        self._restart()

    def say(self, note: str) -> None:
        """Replaces the note, and shows it at once if there is a bar."""
        self.note = note
        if self._terminal is not None:
            self._terminal.refresh()

    def update(self, number: int = 1, timed: bool = True) -> None:
        """Counts steps that are done; unless `timed`, the clock starts after them."""
        self.done += number
        if not timed:
            self._restart()
        now = time.monotonic()
        if now - self._recent[-1][0] > WINDOW / 30:
            self._recent.append((now, self.done))
        while len(self._recent) > 1 and now - self._recent[1][0] > WINDOW:
            self._recent.popleft()
        if self._terminal is not None:
            self._terminal.update(number)
        elif self._logs and not (self.total and self.done >= self.total):
            if self._every:
                due = self.done % self._every == 0
            else:
                due = now - self._logged > SECONDS
            if due and self.rate():
                self._log()

    def rate(self) -> float:
        """Returns units per second of the last `WINDOW` seconds, at the end of all.

        It is 0 if unknown.
        """
        start, done = self._start if self._finished else self._recent[0]
        elapsed = time.monotonic() - start
        return (self.done - done) * self._size / elapsed if elapsed else 0.0

    def _log(self) -> None:
        self._logged = time.monotonic()
        logging.info("%s", ", ".join(filter(None, (self.head(), self.tail()))))

    def head(self) -> str:
        """Returns the name and how much is done: 'rqvae 12/984 (1%)'."""
        done, total = (
            tqdm.tqdm.format_sizeof(n, "B") if self._unit == "B" else f"{n:,}"
            for n in (self.done, self.total)
        )
        if not self.total:
            return f"{self.name} {done}"
        percent = min(100 * self.done // self.total, 100)
        return f"{self.name} {done}/{total} ({percent}%)"

    def tail(self) -> str:
        """Returns 'loss 0.123, 310 images/s, ETA 1m05s', or at the end 'took 2m10s'."""
        start, done = self._start
        elapsed, rate = time.monotonic() - start, self.rate()
        parts = [self.note]
        if rate and self._unit == "B":
            parts.append(f"{tqdm.tqdm.format_sizeof(rate, 'B')}/s")
        elif rate:
            parts.append(f"{significant(rate)} {self._unit}/s")
        if self._finished:
            parts.append(f"took {duration(elapsed)}")
        elif self.total and self.done > done:
            left = elapsed * (self.total - self.done) / (self.done - done)
            parts.append(f"ETA {duration(left)}")
        return ", ".join(filter(None, parts))


class _Terminal(tqdm.tqdm):
    """The drawing of a `Bar`."""

    def __init__(self, bar: Bar):
        self._shown = bar
        # Terminals that say that they have no size get one; tqdm would draw nothing.
        is_known = all(os.get_terminal_size(sys.stderr.fileno()))
        super().__init__(
            initial=bar.done,
            total=bar.total or None,
            bar_format="{head} |{bar}| {tail}",
            file=sys.stderr,
            miniters=1,
            dynamic_ncols=is_known,
            ncols=None if is_known else COLUMNS,
            nrows=None if is_known else COLUMNS,
        )

    @property
    def format_dict(self) -> dict:
        """What the bar shows, for tqdm."""
        bar, found = self._shown, super().format_dict
        found |= {"n": bar.done, "total": bar.total or None}
        return found | {"head": bar.head(), "tail": bar.tail()}


def significant(value: float) -> str:
    """Returns a number with three significant digits, and never an exponent."""
    if not value or not math.isfinite(value):
        return f"{value:g}"
    value = float(f"{value:.3g}")
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def duration(seconds: float) -> str:
    """Returns seconds as '12s', '3m05s', '2h07m' or '4d01h'."""
    seconds = math.ceil(seconds)
    for unit, size, part, below in (("d", 86400, "h", 3600), ("h", 3600, "m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // below:02d}{part}"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"
