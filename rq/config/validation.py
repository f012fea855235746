# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks that a config can be trained, before any compute.

First that every field is there and of its type, then its own range, then how fields
depend on each other.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from rq.config.errors import ConfigError
from rq.config.sampling import SamplingConfig
from rq.config.schema import (
    FIELDS,
    FROM_PATH,
    RENAMED,
    SECTIONS,
    STAGES,
    fields,
)

GROUPS = 32  # of the autoencoder's GroupNorms
STORED_CODES = 2**16  # codes are stored as 16-bit numbers


def unknown_field(name: str) -> ConfigError:
    """Returns the error for a dotted name that is no field, with the likely one."""
    if name in RENAMED:
        return ConfigError(f'config field "{name}" is now "{RENAMED[name]}"')
    if name in SECTIONS:
        some = ", ".join(SECTIONS[name])
        return ConfigError(f'"{name}" is a section; set one of its fields: {some}')
    section, _, leaf = name.rpartition(".")
    if section in SECTIONS:
        close = difflib.get_close_matches(leaf, SECTIONS[section], 1, 0.5)
        guesses = [f"{section}.{child}".lstrip(".") for child in close]
    else:
        guesses = difflib.get_close_matches(name, FIELDS, 1, 0.7)
    if not guesses:  # the right name in the wrong place
        same = [n for n in FIELDS if n.rpartition(".")[2] == leaf]
        guesses = [n for n in same if n.startswith(f"{section}.")] or same[:3]
    if guesses:
        hint = "did you mean " + " or ".join(f'"{n}"' for n in guesses) + "?"
    else:
        hint = "known there: " + ", ".join(SECTIONS.get(section, SECTIONS[""]))
    return ConfigError(f'unknown config field "{name}"; {hint}')


def check_types(given: Mapping[str, Any]) -> None:
    """Raises ConfigError where fields, by dotted name, are not those of the schema."""
    for name in given:
        if name not in FIELDS:
            raise unknown_field(name)
    for name, field in FIELDS.items():
        if name not in given:
            raise ConfigError(f'missing config field "{name}"')
        if not field.accepts(given[name]):
            raise ConfigError(f"{name} = {given[name]!r}: must be {field.type}")


def validate(config: ConfigDict) -> None:
    """Returns None where the config can be trained.

    Only what the config says by itself: not whether the data is there, nor whether
    the devices make up the mesh.

    Raises:
      ConfigError: one line, with the field, its value and what is wrong with it.
    """
    given = fields(config)
    check_types(given)
    for name, field in FIELDS.items():
        field.range.check(name, given[name])
    _check_mesh(config)
    _check_stages(config)
    _check_data(config)
    _check_autoencoder(config)
    _check_codebooks(config)
    _check_transformer(config)
    if "features" in config.stages:
        _check_features(config)
        _check_training(config, "features")
    for stage in ("rqvae", "transformer"):
        _check_training(config, stage)
    steps = config.rqvae.steps
    _check_optimizer(config, "rqvae.adversarial.optimizer", "rqvae.steps", steps)


def _require(config: ConfigDict, ok: bool, name: str, problem: str) -> None:
    if not ok:
        raise ConfigError(f"{name} = {fields(config)[name]!r}: {problem}")


def _check_stages(config: ConfigDict) -> None:
    ordered = tuple(stage for stage in STAGES if stage in config.stages)
    problem = f"must be some of {STAGES}, each once and in this order"
    _require(config, config.stages and config.stages == ordered, "stages", problem)


def _check_data(config: ConfigDict) -> None:
    named = config.data.name not in FROM_PATH or config.data.path
    problem = f"data.name = {config.data.name!r} needs --config.data.path=..."
    _require(config, named, "data.path", problem)


def _check_autoencoder(config: ConfigDict) -> None:
    model, resolution = config.rqvae.model, config.data.resolution
    name = "rqvae.model."

    _require(config, model.ch_mult, name + "ch_mult", "must not be empty")
    for mult in model.ch_mult:
        width = model.ch * mult
        problem = f"width {width} = {model.ch} x {mult} is no multiple of {GROUPS}"
        field = "ch" if model.ch % GROUPS else "ch_mult"
        _require(config, width % GROUPS == 0, name + field, problem + " (GroupNorm)")

    levels = len(model.ch_mult)
    factor = 2 ** (levels - 1)
    problem = f"is not divisible by {factor}, from {levels} levels in {name}ch_mult"
    _require(config, resolution % factor == 0, "data.resolution", problem)

    sides = tuple(resolution // 2**level for level in range(levels))
    for side in model.attn_resolutions:
        problem = f"no level has resolution {side}; they are {sides}"
        _require(config, side in sides, name + "attn_resolutions", problem)

    field, side = name + "code_shape", sides[-1]
    problem = "must be three numbers: rows, columns, depth"
    _require(config, len(model.code_shape) == 3, field, problem)
    for what, size in zip(("rows", "columns"), model.code_shape, strict=False):
        problem = f"{size} {what} do not divide the feature map's side {side}"
        problem += f" = {resolution} / {factor}"
        _require(config, side % size == 0, field, problem)


def _check_codebooks(config: ConfigDict) -> None:
    model = config.rqvae.model
    depth = model.code_shape[2]
    for name in ("num_codes", "decay"):
        count = len(model[name])
        problem = f"has {count} values; give 1, or one for each depth: {depth}"
        _require(config, count in (1, depth), f"rqvae.model.{name}", problem)
    SamplingConfig(**config.sampling).check_depth(depth)
    stored = {"codes", "transformer"} & set(config.stages)
    fits = max(model.num_codes) <= STORED_CODES or config.transformer.online
    problem = f"codes above {STORED_CODES:,} cannot be stored: transformer.online=True"
    problem += " trains stage 2 without stored codes"
    _require(config, fits or not stored, "rqvae.model.num_codes", problem)

    own = not model.shared_codebook
    name = "rqvae.model.cosine"
    problem = "codes of one length need a codebook for each depth: shared_codebook"
    _require(config, not model.cosine or own or depth == 1, name, problem)
    if model.fsq_levels != (0,):
        _check_fsq(config)

    if len(set(model.num_codes)) == 1:
        return
    name = "rqvae.model.shared_codebook"
    problem = f"one codebook cannot have sizes {model.num_codes}"
    _require(config, not model.shared_codebook, name, problem)
    transformer = config.transformer.model
    name = "transformer.model.shared_classifier"
    problem = f"one classifier cannot serve codebooks of sizes {model.num_codes}"
    _require(config, not transformer.shared_classifier, name, problem)
    learned = not (transformer.body_from_codebook and transformer.head_from_codebook)
    shared = learned and transformer.shared_token_embedding
    name = "transformer.model.shared_token_embedding"
    problem = f"one embedding cannot serve codebooks of sizes {model.num_codes}"
    _require(config, not shared, name, problem)


def _check_fsq(config: ConfigDict) -> None:
    model, name = config.rqvae.model, "rqvae.model.fsq_levels"
    _require(config, 0 not in model.fsq_levels, name, "0 stands alone: off")
    size = math.prod(model.fsq_levels)
    problem = f"is a grid of {size}, not of rqvae.model.num_codes {model.num_codes}"
    _require(config, set(model.num_codes) == {size}, name, problem)
    side = config.data.resolution // 2 ** (len(model.ch_mult) - 1)
    rows, columns, _ = model.code_shape
    dim = model.embed_dim * side**2 // (rows * columns)
    problem = f"code vectors have {dim} channels, from rqvae.model.embed_dim"
    _require(config, len(model.fsq_levels) == dim, name, problem)
    own = not model.shared_codebook or model.code_shape[2] == 1
    problem = "each depth has a finer grid of its own: shared_codebook must be False"
    _require(config, own, name, problem)
    _require(config, not model.cosine, "rqvae.model.cosine", "a grid has no angles")


def _check_features(config: ConfigDict) -> None:
    features, name = config.features, "features.model.convs"
    blocks = len(features.model.widths)
    problem = f"must have one number for each of the {blocks} widths"
    _require(config, len(features.model.convs) == blocks > 0, name, problem)
    labelled = features.objective != "class" or config.data.num_classes > 0
    problem = "needs labels, but data.num_classes is 0; 'rotation' does not"
    _require(config, labelled, "features.objective", problem)


def _check_transformer(config: ConfigDict) -> None:
    model = config.transformer.model
    for stack in ("body", "head"):
        problem = f"does not divide transformer.model.width {model.width}"
        divides = model.width % model[stack].heads == 0
        _require(config, divides, f"transformer.model.{stack}.heads", problem)
    rows, columns, _ = config.rqvae.model.code_shape
    microbatches = config.transformer.loss.microbatches
    problem = f"does not divide the {rows * columns} positions"
    divides = rows * columns % microbatches == 0
    _require(config, divides, "transformer.loss.microbatches", problem)
    condition = config.transformer.condition
    labelled = "class" not in condition or config.data.num_classes > 0
    problem = "needs labels, but data.num_classes is 0"
    _require(config, labelled, "transformer.condition", problem)
    dropout = config.transformer.condition_dropout
    name = "transformer.condition_dropout"
    problem = "nothing to leave out, transformer.condition is 'none'"
    _require(config, not dropout or condition != "none", name, problem)
    possible = set(config.sampling.guidance) == {1.0} or dropout > 0
    problem = "needs training with transformer.condition_dropout above 0"
    _require(config, possible, "sampling.guidance", problem)


def _check_mesh(config: ConfigDict) -> None:
    free = [f"mesh.{name}" for name, size in config.mesh.items() if size == -1]
    problem = f"only one may be left open, not {', '.join(free)}"
    _require(config, len(free) < 2, free[-1] if free else "mesh.data", problem)


def _check_training(config: ConfigDict, stage: str) -> None:
    section = config[stage]
    name, size = f"{stage}.batch_size", section.batch_size
    count = section.grad_accum_steps
    problem = f"is not divisible by {stage}.grad_accum_steps {count}"
    _require(config, size % count == 0, name, problem)

    if stage in config.stages:
        # What is -1 depends on the devices; the mesh itself is checked against them.
        parts = max(config.mesh.data, 1) * max(config.mesh.fsdp, 1)
        problem = f"{size // count} images at once are not divisible by {parts},"
        problem += " from mesh.data and mesh.fsdp"
        _require(config, size // count % parts == 0, name, problem)

    _check_optimizer(config, f"{stage}.optimizer", f"{stage}.steps", section.steps)


def _check_optimizer(config: ConfigDict, name: str, steps_name: str, steps: int):
    given = fields(config)
    problem = f"is more than {steps_name} {steps}"
    enough = given[f"{name}.warmup_steps"] <= steps
    _require(config, enough, f"{name}.warmup_steps", problem)
    rate = given[f"{name}.learning_rate"]
    falls = given[f"{name}.min_learning_rate"] <= rate
    problem = f"is above the learning rate {rate}"
    _require(config, falls, f"{name}.min_learning_rate", problem)
