# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reads batches for training, evaluation, encoding and reference statistics.

Grain prefetches them, `data.threads` batches at once. Each process reads only its own
rows. A batch is a pure function of (seed, step): it does not depend on where the run
was resumed or on the number of threads, and the global batch does not depend on the
number of processes.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain.python as grain
import jax
import numpy as np
from jax.sharding import Mesh

from rq.data import DataError, source_images
from rq.data.augment import transforms
from rq.data.sources import Source
from rq.parallel import sharding

THREADS = min(8, os.cpu_count() or 1)  # used if there is no config
Tokens = Callable[[Sequence[str], np.random.Generator], np.ndarray]


def shuffled(
    source: Source,
    data,
    *,
    batch_size: int,
    seed: int,
    process_index: int | None = None,
    process_count: int | None = None,
    tokens: Tokens | None = None,
    paired: bool = False,
) -> grain.DatasetIterator:
    """Returns an endless iterator over training batches, reshuffled every epoch.

    Args:
      source: images (decoded, uint8) or stored codes.
      data: the `data` section of the config.
      batch_size: global batch size B.
      seed: seed of the order and the augmentation.
      process_index, process_count: the part of each batch that this process reads, see
        `rq.parallel.sharding.batch_shard`; JAX's if None.
      tokens: turns captions into 'text'. If None, captions are not read.
      paired: whether images come with their 'source', if the config has any.

    Returns:
      A Grain iterator over dicts of arrays `[B / processes, ...]`, images uint8. Its
      `get_state()` is a few bytes of JSON.

    Raises:
      ValueError: if the batch size is not divisible by the number of processes.
      DataError: if the batch is larger than the data set.
    """
    process = jax.process_index() if process_index is None else process_index
    processes = jax.process_count() if process_count is None else process_count
    number = len(source)
    if batch_size % processes:
        raise ValueError(f"batch size {batch_size} for {processes} processes")
    if batch_size > number:
        raise DataError(
            f"batch size {batch_size} is larger than the data set: choose a batch "
            f"size of at most {number}"
        )
    local = batch_size // processes
    rows = range(process * local, (process + 1) * local)
    read = _reader(source, data, transforms(data)[0], seed, tokens, paired=paired)

    @functools.lru_cache(maxsize=2)
    def order(epoch):
        return np.random.default_rng((seed, epoch)).permutation(number)

    def example(place):
        epoch, place_in_epoch = divmod(place, number)
        return read(int(order(epoch)[place_in_epoch]), place)

    steps = sys.maxsize // batch_size
    return _read_ahead(_Batches(example, batch_size, rows, steps), data)


def in_order(
    source: Source,
    data,
    batch_size: int,
    limit: int = 0,
    tokens: Tokens | None = None,
    *,
    mesh: Mesh | None = None,
    start: int = 0,
    stop: int | None = None,
    captions: bool = False,
    paired: bool = False,
) -> Pass:
    """Returns batches of every example, once, with the transform of evaluation.

    Args:
      source: images or stored codes.
      data: the `data` section of the config; if None, images are not transformed.
      batch_size: global batch size B. The last batch is padded with copies of the last
        example.
      limit: maximum number of batches; 0 for all.
      tokens: as in `shuffled`.
      mesh: each of its processes reads only the rows of its own devices, which
        `rq.parallel.sharding.shard_batch` takes; if None, all rows are read.
      start, stop: range of examples; `stop` None means the end.
      captions: whether batches have 'captions', a list of tuples.
      paired: as in `shuffled`.

    Returns:
      Dicts of arrays `[B / processes, ...]`, with 'mask' bool, False for padding.

    Raises:
      MeshError: if the batch size is not divisible by the number of devices.
    """
    stop = len(source) if stop is None else stop
    rows = range(batch_size) if mesh is None else sharding.rows(mesh, batch_size)
    center = None if data is None else transforms(data)[1]
    read = _reader(source, data, center, 0, tokens, captions, paired)

    def example(place):
        index = min(start + place, stop - 1)
        return read(index, index) | {"mask": np.bool_(start + place < stop)}

    steps = -(-(stop - start) // batch_size)
    steps = min(steps, limit) if limit else steps
    number = min(stop - start, steps * batch_size)
    batches = _Batches(example, batch_size, rows, steps)
    return Pass(batches, data, number, batch_size)


class Pass(Iterator[dict]):
    """Batches in which every example comes once.

    Attributes:
      number: of examples, all processes together.
      batch_size: of all processes together; the last batch may have fewer examples.
    """

    def __init__(self, batches: _Batches, data, number: int, batch_size: int):
        self.number, self.batch_size = number, batch_size
        self._batches = self._read(batches, data)

    @staticmethod
    def _read(batches, data):
        # Reading starts with the first batch, and stops when the caller stops.
        with contextlib.closing(_read_ahead(batches, data)) as ahead:
            yield from ahead

    def __next__(self) -> dict:
        return next(self._batches)

    def close(self) -> None:
        """Stops reading before the end."""
        self._batches.close()


def _read_ahead(batches: _Batches, data) -> grain.DatasetIterator:
    threads = THREADS if data is None else data.threads
    prefetch = 2 * THREADS if data is None else max(data.prefetch, threads)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.source(batches).to_iter_dataset(options))


class _Batches:
    """A sequence of this process's rows of the global batches, by step."""

    def __init__(self, example: Callable[[int], dict], batch_size, rows, steps):
        """Takes a function from a row's place in all batches to an example."""
        self._example, self._batch_size = example, batch_size
        self._rows, self._steps = rows, steps

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> dict:
        # Each example is copied as soon as it is read, so that its memory, which is
        # still in the cache, is reused for the next one. Stacking them at the end would
        # page in new memory for every batch.
        batch: dict[str, Any] = {}
        first = int(step) * self._batch_size
        for k, row in enumerate(self._rows):
            for name, value in self._example(first + row).items():
                if isinstance(value, tuple):  # captions
                    batch.setdefault(name, []).append(value)
                    continue
                if name not in batch:
                    value = np.asarray(value)
                    batch[name] = np.empty((len(self._rows), *value.shape), value.dtype)
                batch[name][k] = value
        return batch


def _reader(source, data, transform, seed, tokens, captions=False, paired=False):
    """Returns a function from (index in the source, place in order) to an example."""

    def read(index, place):
        rng = generator(seed, place)
        if tokens is None and not captions:
            example = source[index]
        else:
            example, lines = source.read(index)
            example |= {"captions": lines} if captions else {}
            example |= {"text": tokens(lines, rng)} if tokens is not None else {}
        if "image" in example and transform is not None:
            example = source_images.transformed(example, transform, data, rng, paired)
        return example

    return read


def generator(seed: int, place: int) -> np.random.Generator:
    """Returns the generator of one example; it is counter-based and fast to create."""
    return np.random.Generator(np.random.Philox(key=[seed, place]))


class Variants:
    """A source with several variants of every image, for encoding.

    Example i is a variant of image i // variants. The first is transformed as in
    evaluation, the others are augmented. Each is a function of (seed, i).
    """

    def __init__(
        self,
        source: Source,
        data,
        variants: int = 1,
        seed: int = 0,
        paired: bool = False,
    ):
        """Takes a source of images, the `data` section of the config, and options.

        Args:
          source, data: the images.
          variants: of each image.
          seed: of the augmentation.
          paired: as in `shuffled`.
        """
        self._source, self._data, self._paired = source, data, paired
        self._variants, self._seed = variants, seed
        self._augment, self._center = transforms(data)

    def __len__(self) -> int:
        return len(self._source) * self._variants

    def __getitem__(self, index: int) -> dict:
        return self.read(index)[0]

    def read(self, index: int) -> tuple[dict, tuple[str, ...]]:
        """Returns an example, its images at the model's resolution, and captions."""
        image, variant = divmod(index, self._variants)
        example, captions = self._source.read(image)
        transform = self._augment if variant else self._center
        rng = generator(self._seed, index)
        example = source_images.transformed(
            example, transform, self._data, rng, self._paired
        )
        return example, captions
