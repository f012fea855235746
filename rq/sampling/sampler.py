# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Draws images from a trained model, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rq.config import ConfigError, SamplingConfig
from rq.models.rqvae import RQVAE
from rq.models.transformer import RQTransformer, code_vectors
from rq.models.unroll import unroll
from rq.parallel import sharding
from rq.sampling import codec, program
from rq.sampling.filters import make_filters
from rq.sampling.guidance import make_guidance
from rq.sampling.inpainting import Given, check_codes
from rq.sampling.levels import group_size, make_steps
from rq.sampling.order import group_starts, largest_group, make_order


class Samples(NamedTuple):
    """A batch of samples.

    Attributes:
      images: `[B, Y, X, C]`, float32 in [-1, 1], or uint8; None without an RQ-VAE.
      codes: int32 `[B, H, W, D]`, or fewer depths where `SamplingConfig.depth` is set.
    """

    images: Any
    codes: Any


class Wanted(NamedTuple):
    """One sample of a batch in which each may be of another seed, with other options.

    Attributes:
      cond: int32, a class or tokens `[S]`; None of an unconditional model.
      place: index of the sample among all of its seed.
      config: how it is drawn.
      given: codes of which some are kept; None: all are drawn.
    """

    cond: np.ndarray | None
    place: int
    config: SamplingConfig
    given: Given | None = None


class DeviceBatch(NamedTuple):
    """Samples on the devices, padded to the compiled batch size.

    Attributes:
      rows: which of all samples asked for they are; what follows them is padding.
      images: float32 `[B, Y, X, C]` in [-1, 1]; None without an RQ-VAE.
      codes: int32 `[B, H, W, D]`.
      finite: bool `[B]`, whether the RQ-VAE's output was.
    """

    rows: range
    images: jax.Array | None
    codes: jax.Array
    finite: jax.Array


class Sampler:
    """Draws codes with a transformer and decodes them with its RQ-VAE.

    Sample i of a seed is the same whatever the batch size and the devices. Batches have
    one shape, that of the compiled program: the last is padded. They are divided over
    the mesh, and at most two are on the devices at any time.
    """

    def __init__(
        self,
        transformer: RQTransformer,
        transformer_variables,
        rqvae: RQVAE | None,
        rqvae_variables,
        *,
        mesh,
        null_cond=None,
    ):
        """Takes both models.

        Args:
          transformer: the RQ-Transformer.
          transformer_variables: its `params`, and the `codebook` of its RQ-VAE.
          rqvae: the RQ-VAE that decodes; None: samples are codes alone.
          rqvae_variables: its `params` and `codebook`.
          mesh: the devices.
          null_cond: what stood for no condition in training, see `conditions.null`;
            None where it was never left out, and guidance is impossible.
        """
        self.mesh, self.null_cond = mesh, null_cond
        self.model, self._params = unroll(transformer, transformer_variables["params"])
        self._codebook = code_vectors(transformer_variables["codebook"])
        self._rqvae, self._rqvae_variables = rqvae, rqvae_variables

    def options(self, config: SamplingConfig):
        """Returns what the compiled program takes: (filters, guidance or None).

        Raises:
          ConfigError: on values for another depth, or guidance that the model lacks.
        """
        return compile_options(config, self.model, self.null_cond)

    def batch_size(self, config: SamplingConfig, number: int) -> int:
        """Returns samples at once: at most `number`, rounded up to fill the devices."""
        return codec.whole_batch(self.mesh, config.batch_size, number)

    def on_devices(
        self,
        cond: np.ndarray | None,
        number: int,
        config: SamplingConfig,
        *,
        first: int = 0,
        given: Given | None = None,
    ) -> Iterator[DeviceBatch]:
        """Yields batches as soon as they are dispatched; see `batches`."""
        filters, guidance = self.options(config)
        size, shape = self.batch_size(config, number), self.model.code_shape
        codes, keep = np.zeros(shape, np.int32), np.zeros(shape, bool)
        if given is not None:
            check_codes(given.codes, shape, self.model.sizes, "given codes")
            codes, keep = given
        depth = config.depth or self.model.depth
        codes, keep = codes[..., :depth], keep[..., :depth]
        order = order_options(self.model, keep, config)
        key = jax.random.key(config.seed)
        for start in range(0, number, size):
            batch = {"codes": np.broadcast_to(codes, (size, *codes.shape))}
            if cond is not None:
                batch["cond"] = cond[np.arange(start, start + size) % number]
            with sharding.context(self.mesh):
                batch = sharding.shard_batch(batch, self.mesh, whole=True)
                drawn = program.sample(
                    self.model,
                    self._params,
                    self._codebook,
                    batch.get("cond"),
                    key,
                    filters=filters,
                    guidance=guidance,
                    null_cond=self.null_cond,
                    first_index=first + start,
                    codes=batch["codes"],
                    keep=keep,
                    **order,
                )
                images, finite = None, jnp.ones(size, bool)
                if self._rqvae is not None:
                    images, finite = codec.decode(
                        self._rqvae, self._rqvae_variables, drawn
                    )
            rows = range(start, min(start + size, number))
            yield DeviceBatch(rows, images, drawn, finite)

    def row_order(self, wanted: Sequence[Wanted]) -> np.ndarray:
        """Returns the order in which `by_row` draws positions, int32 `[N, T]`."""
        height, width, _ = self.model.code_shape
        raster = np.arange(height * width, dtype=np.int32)
        return np.stack(
            [
                make_order(x.given.keep) if self.model.any_order and x.given else raster
                for x in wanted
            ]
        )

    def by_row(self, wanted: Sequence[Wanted], size: int) -> Iterator[jax.Array]:
        """Yields the codes of different samples, one row of positions after another.

        They are those of `sample`, and their positions those of `row_order`. All
        batches of one size run one compiled program, or, where a sample has guidance,
        another.

        Args:
          wanted: the samples, at least one.
          size: of the compiled batch, at least as many; see `batch_size`.

        Yields:
          int32 `[size, W, D]`, as soon as it is dispatched; padding comes last.

        Raises:
          ConfigError: on options or codes that the model does not have, and where
            several positions, or not all depths, are to be drawn at once.
        """
        if any(x.config.parallel_steps for x in wanted):
            raise ConfigError("sampling.parallel_steps: not row by row")
        if any(any(x.config.levels) for x in wanted):
            raise ConfigError("sampling.levels: not row by row")
        if any(x.config.depth not in (0, self.model.depth) for x in wanted):
            raise ConfigError("sampling.depth: all depths are drawn row by row")
        shape, number = self.model.code_shape, len(wanted)
        rows = [*wanted, *[wanted[0]] * (size - number)]
        options = {config: self.options(config) for config in {x.config for x in rows}}
        filters, guidance = zip(*(options[x.config] for x in rows), strict=True)
        filters = jax.tree.map(lambda *x: jnp.stack(x, 1)[..., None], *filters)
        if all(scale is None for scale in guidance):
            guidance = None
        else:
            off = jnp.ones((self.model.positions, self.model.depth))
            scales = [off if scale is None else scale for scale in guidance]
            guidance = jnp.stack(scales, 2)[..., None]
        nothing = Given(np.zeros(shape, np.int32), np.zeros(shape, bool))
        for given in {id(x.given): x.given for x in wanted if x.given}.values():
            check_codes(given.codes, shape, self.model.sizes, "given codes")
        given = [x.given or nothing for x in rows]
        keys = {seed: jax.random.key(seed) for seed in {x.config.seed for x in rows}}
        keys = jnp.stack([keys[x.config.seed] for x in rows])
        keys = jax.vmap(jax.random.fold_in)(keys, np.asarray([x.place for x in rows]))
        batch = {
            "codes": np.stack([x.codes for x in given]),
            "keep": np.stack([x.keep for x in given]),
        }
        if self.model.any_order:
            batch["order"] = self.row_order(rows)
        conds = [x.cond for x in rows if x.cond is not None]
        if conds:
            batch["cond"] = np.stack(conds)
        with sharding.context(self.mesh):
            batch = sharding.shard_batch(batch, self.mesh, whole=True)
        drawn = program.sample_rows(
            self.model,
            self._params,
            self._codebook,
            batch.get("cond"),
            keys,
            batch["codes"],
            batch["keep"],
            filters=filters,
            guidance=guidance,
            null_cond=self.null_cond,
            order=batch.get("order"),
        )
        for _ in range(shape[0]):
            with sharding.context(self.mesh):
                row = next(drawn)
            yield row

    def batches(
        self,
        cond: np.ndarray | None,
        number: int,
        config: SamplingConfig,
        *,
        first: int = 0,
        given: Given | None = None,
        dtype=np.float32,
    ) -> Iterator[Samples]:
        """Yields samples on the host, in order; the last batch may be smaller.

        Args:
          cond: int32 `[N]` classes or `[N, S]` tokens; None of an unconditional model.
          number: N.
          config: how they are drawn.
          first: index of the first sample among all of the seed.
          given: codes of which some are kept in every sample.
          dtype: of the images: float32 in [-1, 1], or uint8.

        Raises:
          ConfigError: on options or codes that the model does not have, and where its
            logits or its images are not finite.
        """
        drawn = self.on_devices(cond, number, config, first=first, given=given)
        for images, codes, finite in codec.read_behind(
            (
                len(x.rows),
                (
                    None if x.images is None else codec.as_dtype(x.images, dtype),
                    x.codes,
                    x.finite,
                ),
            )
            for x in drawn
        ):
            check_finite(codes, finite, first)
            first += len(codes)
            yield Samples(images, codes)

    def sample(
        self, cond: np.ndarray | None, number: int, config: SamplingConfig, **options
    ) -> Samples:
        """Returns all of `batches` at once, on the host."""
        found = list(self.batches(cond, number, config, **options))
        images, codes = zip(*found, strict=True)
        has_images = self._rqvae is not None
        return Samples(
            np.concatenate(images) if has_images else None, np.concatenate(codes)
        )

    def decode(
        self, codes: np.ndarray, config: SamplingConfig, dtype=np.float32
    ) -> Iterator[np.ndarray]:
        """Yields images `[B, Y, X, C]` of codes `[N, H, W, D]`, on the host.

        Raises:
          ConfigError: if there is no RQ-VAE.
        """
        if self._rqvae is None:
            raise ConfigError("there is no RQ-VAE to decode the codes with")
        decoder = codec.Codec(self._rqvae, self._rqvae_variables, self.mesh)
        return decoder.decode(codes, config.batch_size, dtype=dtype)


def compile_options(config: SamplingConfig, model: RQTransformer, null_cond):
    """Returns filters and guidance (None: off) as `program.sample` takes them.

    Raises:
      ConfigError: on values for another depth, or guidance that the model lacks.
    """
    filters = make_filters(config, model.depth)
    guidance = make_guidance(config, model.code_shape)
    if guidance is not None and null_cond is None:
        raise ConfigError(
            f"guidance {config.guidance} needs a model that was trained with "
            "transformer.condition_dropout above 0"
        )
    return filters, guidance


def order_options(
    model: RQTransformer, keep: np.ndarray, config: SamplingConfig
) -> dict:
    """Returns how `program.sample` orders and groups the positions.

    Raises:
      ConfigError: on groups or levels for a model of raster order.
    """
    steps, positions = config.parallel_steps, model.positions
    levels = config.levels if any(config.levels) else ()
    if not model.any_order:
        if steps or levels:
            name = "levels" if levels else "parallel_steps"
            raise ConfigError(
                f"sampling.{name} = {levels or steps} needs a model that was "
                "trained with transformer.order='random' or 'annealed'"
            )
        return {}
    if levels:
        steps = min(steps or positions, positions)
        return {
            "levels": make_steps(keep, levels, steps),
            "largest_group": group_size(positions, steps),
        }
    order = {"order": make_order(keep, spread=steps > 0)}
    if not steps:
        return order
    steps, known = min(steps, positions), int(keep.all(axis=-1).sum())
    return order | {
        "group_starts": group_starts(positions, known, steps),
        "largest_group": largest_group(positions, steps),
    }


def check_finite(codes: np.ndarray, finite: np.ndarray, first: int) -> None:
    """Checks a batch that starts at sample `first`.

    Raises:
      ConfigError: where logits were not finite (code -1), or images were not; with the
        first place.
    """
    if (codes < 0).any():
        row, y, x, d = np.argwhere(codes < 0)[0]
        raise ConfigError(
            f"sample {first + row}: the transformer's logits are not finite at row "
            f"{y}, column {x}, depth {d + 1}: its weights have diverged, or guidance "
            "is too large; try another --step"
        )
    codec.check_pixels(finite, first)
