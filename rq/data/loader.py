# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Batches of a source, for training and evaluation.

The training stream is a pure function of (seed, step, process): the batch of a step is
the same however the run came to that step, and the global batch is the same however
many processes share it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import grain.python as grain
import jax
import numpy as np

from rq.data.augment import transforms

Tokens = Callable[[Sequence[str], np.random.Generator], np.ndarray]


class _Batches:
    """This process's part of all global batches, one after another, without end."""

    def __init__(self, source, data, batch_size, seed, process, processes, tokens):
        self._source, self._data, self._seed = source, data, seed
        self._batch, self._local = batch_size, batch_size // processes
        self._first = process * self._local
        self._order = functools.lru_cache(maxsize=2)(self._permutation)
        self._augment, _ = transforms(data)
        self._tokens = tokens

    def __len__(self) -> int:
        return sys.maxsize // self._batch

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        first = int(step) * self._batch + self._first
        examples = (self._example(first + k) for k in range(self._local))
        return _stack(examples, self._local)

    def _example(self, place):
        epoch, place_in_epoch = divmod(place, len(self._source))
        index = int(self._order(epoch)[place_in_epoch])
        rng = _generator(self._seed, place)
        example = _read(self._source, index, self._tokens, rng)
        if "image" in example:
            image = self._augment(example["image"], self._data.resolution, rng)
            example["image"] = image
        return example

    def _permutation(self, epoch):
        return np.random.default_rng((self._seed, epoch)).permutation(len(self._source))


def _generator(seed: int, place: int) -> np.random.Generator:
    """Of the augmentation of one example; a counter-based one is made in no time."""
    return np.random.Generator(np.random.Philox(key=[seed, place]))


class Variants:
    """Every image of a source in several versions, as they are encoded.

    Example i is of image i // variants: first as in evaluation, then augmented, each a
    function of (seed, i).
    """

    def __init__(self, source, data, variants: int = 1, seed: int = 0):
        """Takes a source of images and the `data` section of a config."""
        self._source, self._data = source, data
        self._variants, self._seed = variants, seed
        self._augment, self._center = transforms(data)

    def __len__(self) -> int:
        return len(self._source) * self._variants

    def __getitem__(self, index: int) -> dict:
        image, variant = divmod(index, self._variants)
        example, captions = self._source.read(image)
        transform = self._augment if variant else self._center
        rng = _generator(self._seed, index)
        pixels = transform(example["image"], self._data.resolution, rng)
        return example | {"image": pixels, "captions": captions}


def _read(source, index, tokens, rng):
    """An example, with 'text' of its captions where that is asked for."""
    if tokens is None:
        return source[index]
    example, captions = source.read(index)
    return example | {"text": tokens(captions, rng)}


def _stack(examples: Iterable[dict], number: int) -> dict[str, np.ndarray]:
    """A batch of `number` examples.

    Each is copied as soon as it is made: its memory, still in the cache, serves the
    next one. Together they would be pages that the kernel has to find for every batch.
    """
    batch = {}
    for row, example in enumerate(examples):
        for name, value in example.items():
            if name not in batch:
                value = np.asarray(value)
                batch[name] = np.empty((number, *value.shape), value.dtype)
            batch[name][row] = value
    return batch


def shuffled(
    source,
    data,
    *,
    batch_size: int,
    seed: int,
    process_index: int | None = None,
    process_count: int | None = None,
    tokens: Tokens | None = None,
) -> grain.DatasetIterator:
    """An endless, shuffled iterator over this process's part of each batch.

    Args:
      source: of images (decoded, uint8) or stored codes.
      data: section of the config.
      batch_size: global, B.
      seed: of order and augmentation.
      process_index, process_count: this process's share of each batch, as
        `rq.parallel.sharding.batch_share` has it; JAX's where None.
      tokens: makes 'text' of the captions; without it there is none.

    Returns:
      A Grain iterator over dicts of arrays `[B / processes, ...]`, images uint8; its
      `get_state()` is a few bytes of JSON.

    Raises:
      ValueError: where the batch does not divide, or is larger than the data set.
    """
    process = jax.process_index() if process_index is None else process_index
    processes = jax.process_count() if process_count is None else process_count
    if batch_size % processes:
        raise ValueError(f"batch size {batch_size} over {processes} processes")
    if batch_size > len(source):
        raise ValueError(f"batch size {batch_size} of a data set of {len(source)}")
    batches = grain.MapDataset.source(
        _Batches(source, data, batch_size, seed, process, processes, tokens)
    )
    options = grain.ReadOptions(
        num_threads=data.threads, prefetch_buffer_size=max(data.prefetch, data.threads)
    )
    return iter(batches.to_iter_dataset(options))


def in_order(
    source, data, batch_size: int, limit: int = 0, tokens: Tokens | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """All examples once, in order.

    Args:
      source: of images or stored codes.
      data: section of the config.
      batch_size: B, of every batch: the last one is filled with copies.
      limit: batches at most; 0: all.
      tokens: as in `shuffled`.

    Yields:
      dicts of arrays `[B, ...]`, with 'mask' bool `[B]`: False for what fills up.
    """
    _, transform = transforms(data)
    batches = -(-len(source) // batch_size)
    for batch in range(min(batches, limit) if limit else batches):
        indices = np.arange(batch * batch_size, (batch + 1) * batch_size)

        def example_of(index):
            example = _read(source, index, tokens, _generator(0, index))
            if "image" in example:
                example["image"] = transform(example["image"], data.resolution, None)
            return example

        examples = (example_of(int(i)) for i in np.minimum(indices, len(source) - 1))
        yield _stack(examples, batch_size) | {"mask": indices < len(source)}
