# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Fits the codebook of stage 1 to the first batches, before the first step.

By k-means (`rqvae.codebook_init`), or from a given model's codebook of another size
(`init_from`). The batches are then trained on as if they had not been read. All
processes compute it together, so that it is the same in each.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import logging

from rq.config import ConfigError, codebook_vectors
from rq.data.pixels import to_float
from rq.models import codebook_fit
from rq.parallel import sharding
from rq.training import init_from
from rq.training.train_state import TrainState

KEY = 2**31  # folded into the state's key; steps fold their number, from 0


def first_state(config, run, stage, data) -> Callable[[TrainState], TrainState]:
    """Returns the function that changes stage 1's new state before the first step.

    It takes what `init_from` gives, and fits the codebook.

    Args:
      config: the whole config.
      run: the run directory.
      stage: an `RQVAEStage`.
      data: iterator over training batches; its position does not change.
    """
    given = init_from.first_state(config, run, stage.name)

    def start(state: TrainState) -> TrainState:
        state = given(state)
        source = init_from.codebook(config, run)
        fit: Callable
        if source is None:
            if config.rqvae.codebook_init != "kmeans":
                return state
            logging.info("rqvae: the codebook is fitted by k-means")
            fit = codebook_fit.fit
        elif source.codebook is None:
            return state
        else:
            logging.info("rqvae: %s", source.text)
            fit = functools.partial(codebook_fit.resize, given_sizes=source.sizes)
        given_codebook = () if source is None else (source.codebook,)
        sizes, shared = stage.model.sizes, stage.model.shared_codebook
        if source is not None and max(sizes) > max(source.sizes):
            _check_vectors(config, max(sizes))
        with sharding.context(stage.mesh):
            vectors = _vectors(stage, state, data, config.rqvae.codebook_batches)
            fitted = jax.jit(
                lambda vectors, key, *given: fit(vectors, sizes, shared, key, *given),
                out_shardings=sharding.replicated(stage.mesh),
            )(vectors, jax.random.fold_in(state.key, KEY), *given_codebook)
        return dataclasses.replace(state, codebook={"state": fitted})

    return start


def _check_vectors(config, codes: int) -> None:
    """Raises ConfigError if the batches have fewer vectors than codes are wanted."""
    number = codebook_vectors(config)
    if number < codes:
        raise ConfigError(
            f"rqvae.codebook_batches = {config.rqvae.codebook_batches}: these have "
            f"{number:,} vectors to add codes from, for {codes:,} codes"
        )


def _vectors(stage, state: TrainState, data, number: int) -> jax.Array:
    """Returns what is quantized of the next batches, `[G, M, C]`, sharded over M."""

    @jax.jit
    def encode(params, codebook, images):
        variables = {"params": params, "codebook": codebook}
        _, features = stage.model.apply(
            variables, to_float(images), method="codes_and_features"
        )
        return features.reshape(-1, features.shape[-1])

    position = data.get_state()
    found = []
    for _ in range(number):
        local = {"image": next(data)["image"]}
        images = sharding.shard_batch(local, stage.mesh)["image"]
        found.append(encode(state.params, state.codebook, images))
    data.set_state(position)
    return jax.jit(lambda *each: jnp.stack(each))(*found)
