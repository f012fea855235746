# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Starts the stages of a run from the weights of a given model (`init_from`).

Only stages without a checkpoint start from it; later the given model is not needed.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
from absl import logging

from rq import loaded_models
from rq.config import ConfigError
from rq.convert import saved_folder
from rq.data import text
from rq.models.build import rqvae_model
from rq.models.codebook import Codebook
from rq.models.digest import digest
from rq.parallel import sharding
from rq.training import checkpoint, given_model, kept_weights
from rq.training.checkpoint_manager import write_trained
from rq.training.given_model import STAGES, GivenModel
from rq.training.train_state import TrainState


class GivenCodebook(NamedTuple):
    """The codebook that stage 1 starts from.

    Attributes:
      codebook: of the given model, to be resized; None: it is taken as it is, by
        `first_state`.
      sizes: its number of codes, for each depth of the run.
      text: for people: what is done with it.
    """

    codebook: Codebook | None = None
    sizes: tuple[int, ...] = ()
    text: str = ""


def _starting(config, run) -> tuple[str, ...]:
    """Returns the stages that are still to start from the given model."""
    if not config.init_from:
        return ()
    wanted = set(config.stages)
    if wanted & {"codes", "transformer"} and not config.transformer.codes_file:
        wanted.add("rqvae")
    return tuple(
        stage
        for stage in config.init_stages
        if stage in wanted and checkpoint.latest_step(run / stage) is None
    )


def gives_rqvae(config, run) -> bool:
    """Returns whether the run takes the given RQ-VAE as it is, and trains none."""
    return "rqvae" in _starting(config, run) and "rqvae" not in config.stages


def check(config, run) -> None:
    """Checks and prints what the stages of a run keep; computes nothing.

    Raises:
      ConfigError: if a stage would keep next to nothing, or the given model lacks all
        stages that are to start from it.
      FileNotFoundError: if there is no such folder.
    """
    if not (starting := _starting(config, run)):
        return
    given = given_model.opened(config.init_from)
    if not set(starting) & set(given.stages):
        missing = " and no ".join(STAGES[stage] for stage in starting)
        raise ConfigError(f"init_from: {given.path} has no {missing}")
    for stage in starting:
        if stage not in given.stages:
            print(f"{stage}: {given.path} has no {STAGES[stage]}; starts afresh")
        elif stage in config.stages:
            print("\n  ".join(_plan(config, run, given, stage).text))
        else:
            _check_unchanged(config, given)
            print(f"{stage}: {given.path}, as it is")


def _plan(config, run, given: GivenModel, stage: str) -> kept_weights.Plan:
    same = {}
    if stage == "transformer":
        same["same_text"] = _is_same_text(config, run, given)
        same["same_source"] = _is_same_source(config, run, given)
    return kept_weights.plan(stage, given.config, config, given.path, **same)


def _check_unchanged(config, given: GivenModel) -> None:
    """Raises ConfigError unless the given RQ-VAE is that of the run's config."""
    here, there = rqvae_model(config), rqvae_model(given.config)
    names = ("resolution", "image_channels", *config.rqvae.model)
    free = ("decay", "restart_codes", "codebook_sums", "gradient", "depth_dropout")
    free += ("dtype",)
    wrong = [
        f"{name} is {getattr(there, name)!r} there, {getattr(here, name)!r} here"
        for name in names
        if name not in free and getattr(there, name) != getattr(here, name)
    ]
    if wrong:
        raise ConfigError(
            f"init_from: without 'rqvae' in stages the RQ-VAE of {given.path} is used "
            f"as it is, but {'; '.join(wrong)}: use its config, or train it"
        )


def first_state(config, run, stage: str) -> Callable[[TrainState], TrainState]:
    """Returns the function that puts given weights into the new state of a stage."""
    if stage not in _starting(config, run):
        return lambda state: state

    def start(state):
        given = given_model.opened(config.init_from)
        if stage not in given.stages:
            return state
        plan = _plan(config, run, given, stage)
        logging.info("%s", "; ".join(plan.text))
        return kept_weights.take(plan, state, given.read)

    return start


def codebook(config, run) -> GivenCodebook | None:
    """Returns the codebook that stage 1 starts from; None: a new one."""
    if "rqvae" not in _starting(config, run):
        return None
    given = given_model.opened(config.init_from)
    if "rqvae" not in given.stages:
        return None
    plan = _plan(config, run, given, "rqvae")
    if not plan.resizes:
        return GivenCodebook() if plan.keeps_codebook else None
    found = sharding.unbox(given.read("rqvae")["codebook"])["state"]
    sizes = kept_weights.given_sizes(given.config, config)
    return GivenCodebook(found, sizes, plan.resizes)


def write_rqvae(config, run, mesh) -> None:
    """Writes the given RQ-VAE as that of the run; see `gives_rqvae`."""
    given = given_model.opened(config.init_from)
    model = given.read("rqvae")
    model = {name: x for name, x in model.items() if name != "ema"}
    model = jax.device_put(model, sharding.replicated(mesh))
    logging.info("rqvae: %s, as it is", given.path)
    write_trained(run, "rqvae", config.rqvae.steps, config, model)


def tokenizer(config, run) -> text.TextTokenizer | None:
    """Returns the given model's tokenizer, if the run is to use it, or None."""
    if "transformer" not in _starting(config, run):
        return None
    given = given_model.opened(config.init_from)
    return _tokenizer(given, config) if _uses_tokenizer(config, given) else None


def _has_text(given: GivenModel) -> bool:
    has_transformer = "transformer" in given.stages
    return has_transformer and "text" in given.config.transformer.condition


def _uses_tokenizer(config, given: GivenModel) -> bool:
    """Returns whether a run without a tokenizer takes that of the given model."""
    ours, theirs = config.transformer.text, given.config.transformer.text
    free = not ours.tokenizer and ours.vocab_size == theirs.vocab_size
    return free and _has_text(given)


def _tokenizer(given: GivenModel, config) -> text.TextTokenizer:
    return text.load(given.tokenizer_path, config.transformer.text.length)


def _is_same_source(config, run, given: GivenModel) -> bool:
    """Returns whether the RQ-VAE of source images is the given model's, by weights."""
    both = (config, run), (given.config, given.path)
    owned = [bool(config.transformer.source_rqvae) for config, _ in both]
    if not all(owned):
        return owned[0] == owned[1]
    ours, theirs = (
        digest(
            loaded_models.from_saved(pathlib.Path(path) / saved_folder.SOURCE).read(
                "rqvae"
            )
        )
        for _, path in both
    )
    return ours == theirs


def _is_same_text(config, run, given: GivenModel) -> bool:
    """Returns whether the run has, or will have, the given model's tokenizer."""
    if "text" not in config.transformer.condition or not _has_text(given):
        return True
    own, options = run / text.FILE, config.transformer.text
    if not own.exists():
        if _uses_tokenizer(config, given):
            return True
        if not options.tokenizer:
            return False  # it will be trained on the captions
        own = options.tokenizer
    return _tokenizer(given, config).is_same(text.load(own, options.length))
