# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Batches of a source, for training and evaluation.

The training stream is a pure function of (seed, step, process): the batch of a step is
the same however the run came to that step, and the global batch is the same however
many processes share it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence

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
        # A permutation for each epoch, computed by index: no list of them is held.
        self._order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
        self._augment, _ = transforms(data)
        self._tokens = tokens

    def __len__(self) -> int:
        return sys.maxsize // self._batch

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        first = int(step) * self._batch + self._first
        return _stack([self._example(first + k) for k in range(self._local)])

    def _example(self, place):
        example = self._source[int(self._order[place])]
        rng = np.random.default_rng((self._seed, place))
        if "image" in example:
            image = self._augment(example["image"], self._data.resolution, rng)
            example["image"] = image
        return _with_text(example, self._tokens, rng)


class Variants:
    """Every image of a source in several versions, as they are encoded.

    Example i is of image i // variants: first as in evaluation, then augmented, each a
    function of (seed, i).
    """

    def __init__(self, source, data, variants: int = 1, seed: int = 0):
        """Takes a source of images and the `data` section of a config."""
        self._source, self._data = source, data
        self._variants, self._seed = variants, seed

    def __len__(self) -> int:
        return len(self._source) * self._variants

    def __getitem__(self, index: int) -> dict:
        image, variant = divmod(index, self._variants)
        example = self._source[image]
        augment, center = transforms(self._data)
        transform = augment if variant else center
        rng = np.random.default_rng((self._seed, index))
        example["image"] = transform(example["image"], self._data.resolution, rng)
        return example


def _with_text(example, tokens, rng):
    """The example with 'text' for 'captions', where text is asked for."""
    captions = example.pop("captions", ())
    if tokens is not None:
        example["text"] = tokens(captions, rng)
    return example


def _stack(examples):
    return {name: np.stack([e[name] for e in examples]) for name in examples[0]}


def train_iterator(
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
      process_index, process_count: JAX's where None.
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


def eval_batches(
    source, data, batch_size: int, limit: int = 0, tokens: Tokens | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """All examples once, in order.

    Args:
      source: of images or stored codes.
      data: section of the config.
      batch_size: B, of every batch: the last one is filled with copies.
      limit: batches at most; 0: all.
      tokens: as in `train_iterator`.

    Yields:
      dicts of arrays `[B, ...]`, with 'mask' bool `[B]`: False for what fills up.
    """
    _, transform = transforms(data)
    batches = -(-len(source) // batch_size)
    for batch in range(min(batches, limit) if limit else batches):
        indices = np.arange(batch * batch_size, (batch + 1) * batch_size)
        examples = []
        for index in np.minimum(indices, len(source) - 1):
            example = source[int(index)]
            if "image" in example:
                image = transform(example["image"], data.resolution, None)
                example["image"] = image
            rng = np.random.default_rng(int(index))
            examples.append(_with_text(example, tokens, rng))
        yield _stack(examples) | {"mask": indices < len(source)}
