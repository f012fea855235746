# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Encodes every image once, between the stages; stage 2 reads the stored codes."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np
from absl import logging

from rq import progress
from rq.config import image_shape
from rq.data import loader, sources
from rq.data.pixels import to_float
from rq.data.stored_codes import CodeWriter
from rq.parallel import preemption, processes, sharding


class Encoder:
    """Encodes images to codes and features, on the devices of this process.

    Source images, of a config that has them, are encoded to codes.
    """

    def __init__(self, model, variables, config, source=None):
        """Takes an RQ-VAE and a config.

        Args:
          model: an `RQVAE`.
          variables: its `params` and `codebook`.
          config: the whole config.
          source: model and variables of the RQ-VAE that encodes source images; None:
            the same one.
        """
        self._data, self._batch_size = config.data, config.codes.batch_size
        self._paired = config.data.source != "none"
        self._mesh = sharding.make_mesh(devices=jax.local_devices())
        self._variables = [
            jax.device_put(jax.device_get(x), sharding.replicated(self._mesh))
            for x in ([variables] if source is None else [variables, source[1]])
        ]
        source_model = model if source is None else source[0]

        @jax.jit
        def step(variables, batch):
            codes, features = model.apply(
                variables[0], to_float(batch["image"]), method="codes_and_features"
            )
            found = {"codes": codes, "features": features}
            if "source" in batch:
                found["source_codes"] = source_model.apply(
                    variables[-1], to_float(batch["source"]), method="codes"
                )
            return found

        self._step = step

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of one example's 'codes', 'features', 'source_codes'."""
        images = jax.ShapeDtypeStruct((1, *image_shape(self._data)), np.uint8)
        names = ("image", "source") if self._paired else ("image",)
        batch = dict.fromkeys(names, images)
        found = jax.eval_shape(self._step, self._variables, batch)
        return {name: x.shape[1:] for name, x in found.items()}

    def __call__(self, source: sources.Source, start: int, stop: int) -> Iterator[dict]:
        """Yields codes and features of examples start to stop - 1 of a source.

        While the devices encode a batch, threads read and decode the next ones, and the
        caller writes the previous one.

        Args:
          source: images, see `rq.data.loader.Variants`.
          start, stop: range of example indices.

        Yields:
          dicts of 'codes' int32 `[B, h, w, D]`, 'features' (latents z) float32
          `[B, h, w, C]`, any 'source_codes', 'label' `[B]` and 'captions', B tuples.
        """
        batches = loader.in_order(
            source, self._data, self._batch_size, start=start, stop=stop, captions=True
        )
        before = None
        for batch in batches:
            with sharding.context(self._mesh):
                images = {k: batch[k] for k in ("image", "source") if k in batch}
                placed = sharding.shard_batch(images, self._mesh)
                outputs = self._step(self._variables, placed)
            if before is not None:
                yield _fetched(*before)
            before = batch, outputs
        if before is not None:
            yield _fetched(*before)


def _fetched(batch, outputs) -> dict:
    number = int(batch["mask"].sum())
    found = jax.device_get(outputs)
    found |= {name: batch[name] for name in ("label", "captions")}
    return {name: value[:number] for name, value in found.items()}


def _counted(batches: Iterator[dict], shown: progress.Bar) -> Iterator[dict]:
    """Yields batches of codes, and counts their images."""
    for batch in batches:
        yield batch
        shown.update(len(batch["codes"]))


def encode_split(
    split: str, directory, encoder: Encoder, fingerprint: dict, config
) -> None:
    """Stores the codes and features of a split, in shards divided over the processes.

    Complete shards are kept. Process 0 decides which are missing.

    Args:
      split: name of the split; the training split is stored in `codes.variants`
        augmented versions.
      directory: folder of the codes.
      encoder: the `Encoder`.
      fingerprint: hashes of the RQ-VAE.
      config: the whole config.

    Raises:
      DataError: if the data set is missing.
      Preempted: with several processes, after SIGTERM, when a shard is complete.
    """
    data = config.data
    variants = config.codes.variants if split == data.train_split else 1
    source = sources.open_split(data, split, paired=True)
    source = loader.Variants(source, data, variants, config.seed, paired=True)
    images = processes.digest_from_process_0(lambda: sources.fingerprint(data, split))
    writer = CodeWriter(
        directory,
        num_examples=len(source),
        shapes=encoder.shapes(),
        fingerprint=fingerprint,
        images=images,
        shard_size=config.codes.shard_size,
    )
    found = processes.run_on_process_0(writer.start)
    missing = np.zeros(writer.num_shards, bool)
    missing[found or []] = True
    missing = np.flatnonzero(processes.broadcast(missing))
    index, count = jax.process_index(), jax.process_count()
    own = [writer.span(shard) for shard in missing[index::count]]
    with progress.Bar(f"codes of {split}", sum(map(len, own)), size=count) as shown:
        for first in range(0, len(missing), count):
            for shard in missing[first : first + count][index : index + 1]:
                span = writer.span(shard)
                encoded = encoder(source, span.start, span.stop)
                writer.write(shard, _counted(encoded, shown))
            preemption.exit_on_stop("codes")
    processes.barrier(f"codes of {split} are written")
    logging.info("codes of %s: %s in %s", split, f"{len(source):,}", directory)
