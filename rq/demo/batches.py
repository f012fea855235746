# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Serves several users with one compiled program.

Requests of all users are put together in batches of one size, which a single thread
draws one after another. Each request gets its part of the next batch, so none waits
longer than for the batch that is being drawn when it comes. Sample i of a seed is the
same whatever is drawn beside it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rq.config import ConfigError
from rq.demo.previews import Previews
from rq.sampling import codec
from rq.sampling.sampler import Wanted, check_finite
from rq.sampling.trained_models import TrainedModels


class Busy(RuntimeError):
    """Too many requests are waiting."""


class Progress(NamedTuple):
    """How far a request is.

    Attributes:
      images: of each sample uint8 `[Y, X, C]`, finished or not; None: not begun.
      finished: number of finished images.
      rows: rows of positions that are drawn of those in work; 0: none is in work.
      depth: of the last of these rows in the images.
      others: requests that wait or are drawn beside it.
      seconds: since the request's first batch was begun.
      codes: int32 `[N, H, W, D]` when all is finished, otherwise None.
    """

    images: list[np.ndarray | None]
    finished: int
    rows: int
    depth: int
    others: int
    seconds: float
    codes: np.ndarray | None


class Request:
    """Samples that a user has asked for, see `Batches.submit`."""

    def __init__(self, batches: Batches, wanted: Sequence[Wanted]):
        self._batches, self.wanted = batches, list(wanted)
        self.taken = 0  # samples that are in a batch, or were
        self.images: list[np.ndarray | None] = [None] * len(wanted)
        self.codes: list[np.ndarray] = []
        self.rows = self.depth = self.version = 0
        self.begun: float | None = None
        self.ended: float | None = None
        self.error: Exception | None = None
        self.cancelled = False

    def progress(self) -> Iterator[Progress]:
        """Yields how far it is, whenever that has changed, until it is finished.

        States that nobody has waited for are left out. What is not yet in a batch is
        cancelled when the iterator is closed.

        Raises:
          ConfigError: if drawing has failed.
        """
        seen = None
        try:
            while True:
                with self._batches.changed:
                    while self.version == seen and self.error is None:
                        self._batches.changed.wait()
                    if self.error is not None:
                        raise self.error
                    seen, state = self.version, self._state()
                yield state
                if state.codes is not None:
                    return
        finally:
            self.cancelled = True

    def _state(self) -> Progress:
        finished = len(self.codes)
        end = time.monotonic() if self.ended is None else self.ended
        return Progress(
            list(self.images),
            finished,
            self.rows,
            self.depth,
            self._batches.others(self),
            0.0 if self.begun is None else end - self.begun,
            np.stack(self.codes) if finished == len(self.wanted) else None,
        )


class Batches:
    """Draws what requests want, batch by batch, in a thread of its own."""

    def __init__(
        self, models: TrainedModels, previews: Previews, max_requests: int = 64
    ):
        """Starts the thread.

        Args:
          models: with a transformer.
          previews: of these models; as many samples are drawn at once.
          max_requests: that wait or are drawn at any time.
        """
        self.size, self.changed = previews.size, threading.Condition()
        self._models, self._previews = models, previews
        self._max_requests, self._requests = max_requests, []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batches", daemon=True)
        self._thread.start()

    def submit(self, wanted: Sequence[Wanted]) -> Request:
        """Returns a request whose samples are drawn from the next batch on.

        Raises:
          Busy: if too many others wait.
          ConfigError: on options that the model does not have.
        """
        for config in {x.config for x in wanted}:
            self._models.sampler.options(config)
        request = Request(self, wanted)
        with self.changed:
            if self._closed or len(self._requests) >= self._max_requests:
                raise Busy("too many requests are waiting: try again in a minute")
            self._requests.append(request)
            self.changed.notify_all()
        return request

    def others(self, request: Request) -> int:
        """Returns how many other requests are waiting or drawn."""
        return sum(x is not request and not x.cancelled for x in self._requests)

    def close(self) -> None:
        """Ends the thread after the current batch; requests fail."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self.changed:
                places = self._next()
                while not places and not self._closed:
                    self.changed.wait()
                    places = self._next()
                if self._closed:
                    self._fail(self._requests, ConfigError("the page is shut down"))
                    return
            requests = list({id(request): request for request, _ in places}.values())
            try:
                self._draw(places)
            except Exception as error:  # the users of this batch see it; others go on
                self._fail(requests, error)
            with self.changed:
                self._requests = [x for x in self._requests if not _is_over(x)]

    def _fail(self, requests, error) -> None:
        with self.changed:
            for request in requests:
                request.error = error
            self.changed.notify_all()

    def _next(self) -> list[tuple[Request, int]]:
        """Returns the samples of the next batch: in turn one of each request.

        Requests that get none are the first in the next batch.
        """
        self._requests = [x for x in self._requests if not _is_over(x)]
        waiting = [x for x in self._requests if x.taken < len(x.wanted)]
        places = []
        while waiting and len(places) < self.size:
            for request in waiting[: self.size - len(places)]:
                places.append((request, request.taken))
                request.taken += 1
            waiting = [x for x in waiting if x.taken < len(x.wanted)]
        served = {id(request) for request, _ in places}
        self._requests.sort(key=lambda x: id(x) in served)
        return places

    def _draw(self, places: list[tuple[Request, int]]) -> None:
        """Draws one batch, and publishes its images while it does.

        Images in between take no more time than drawing does.
        """
        wanted = [request.wanted[index] for request, index in places]
        height, width, depth = self._models.rqvae.code_shape
        codes = np.zeros((self.size, height, width, depth), np.int32)
        depths = np.zeros((self.size, height, width), np.int32)
        for place, one in enumerate(wanted):
            if one.given is not None:  # what is kept is known from the start
                codes[place] = one.given.codes
                depths[place] = one.given.keep.cumprod(-1).sum(-1)
        now = time.monotonic()
        for request, _ in places:
            request.begun = request.begun or now
        drawing = showing = 0.0
        sampler = self._models.sampler
        order = np.resize(sampler.row_order(wanted), (self.size, height * width))
        order = order.reshape(self.size, height, width)
        rows = sampler.by_row(wanted, self.size)
        for y, row in enumerate(codec.read_behind((self.size, row) for row in rows)):
            drawing, now = drawing + time.monotonic() - now, time.monotonic()
            drawn = (np.arange(self.size)[:, None], *divmod(order[:, y], width))
            codes[drawn] = row
            for d in range(1, depth + 1):
                depths[drawn] = np.maximum(depths[drawn], d)
                if showing <= drawing:
                    images = self._previews.decode(codes, depths)
                    self._publish(places, images, y + 1, d)
                    showing, now = showing + time.monotonic() - now, time.monotonic()
        images = next(self._models.codec.decode(codes, self.size, dtype=np.uint8))
        for place, (request, index) in enumerate(places):
            try:
                check_finite(codes[place : place + 1], np.ones(1, bool), index)
            except ConfigError as error:
                self._fail([request], error)
        self._publish(places, images, 0, 0, codes)

    def _publish(self, places, images, rows: int, depth: int, codes=None) -> None:
        """Shows images, finished if there are codes, to those who wait for them."""
        now = time.monotonic()
        with self.changed:
            for place, (request, index) in enumerate(places):
                request.images[index] = images[place]
                request.rows, request.depth = rows, depth
                request.version += 1
                if codes is not None:
                    request.codes.append(codes[place])
                    request.ended = now
            self.changed.notify_all()


def _is_over(request: Request) -> bool:
    done = len(request.codes) == len(request.wanted)
    return done or request.cancelled or request.error is not None
