# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether a config can be trained, found out before any compute.

First that every field is there and of its type, then its own range, then what fields
demand of each other.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from rq.config.sampling import SamplingConfig
from rq.config.schema import FROM_PATH, STAGES, ConfigError, check_types, fields

GROUPS = 32  # of the autoencoder's GroupNorms

Limit = tuple[Callable[[Any], bool], str]

_POSITIVE: Limit = (lambda x: x > 0, "must be positive")
_NOT_NEGATIVE: Limit = (lambda x: x >= 0, "must not be negative")
_PART: Limit = (lambda x: 0 <= x < 1, "must be within [0, 1)")
_SHARE: Limit = (lambda x: 0 <= x <= 1, "must be within [0, 1]")
_PROBABILITY: Limit = (lambda x: 0 < x <= 1, "must be within (0, 1]")
_NOT_EMPTY: Limit = (bool, "must not be empty")
_ANY: Limit = (lambda x: True, "")


def _one_of(*choices) -> Limit:
    words = ", ".join(repr(choice) for choice in choices)
    return (lambda x: x in choices), f"must be one of {words}"


_PARTS: Limit = (lambda x: x > 0 or x == -1), "must be positive, or -1: what is left"

# By the field's dotted name, or else by the end of it; for each element of a tuple.
LIMITS: dict[str, Limit] = {
    "seed": _NOT_NEGATIVE,
    "stages": (
        lambda x: x in STAGES,
        f"unknown stage; known: {', '.join(STAGES)} (for several, repeat the flag)",
    ),
    "mesh.data": _PARTS,
    "mesh.fsdp": _PARTS,
    "mesh.tensor": _PARTS,
    "data.name": _NOT_EMPTY,
    "data.path": _ANY,
    "data.dir": _ANY,
    "holdout": _POSITIVE,
    "train_split": _NOT_EMPTY,
    "eval_split": _NOT_EMPTY,
    "resolution": _POSITIVE,
    "channels": _one_of(1, 3),
    "num_classes": _NOT_NEGATIVE,
    "augment": _one_of(
        "none", "flip", "crop_flip", "resized_crop_flip", "center", "dalle"
    ),
    "threads": _NOT_NEGATIVE,
    "prefetch": _POSITIVE,
    "batch_size": _POSITIVE,
    "steps": _POSITIVE,
    "accumulate": _POSITIVE,
    "objective": _one_of("class", "rotation"),
    "widths": _POSITIVE,
    "convs": _POSITIVE,
    "lpips_weights": _ANY,
    "ch": _POSITIVE,
    "ch_mult": _POSITIVE,
    "num_res_blocks": _POSITIVE,
    "attn_resolutions": _POSITIVE,
    "z_channels": _POSITIVE,
    "embed_dim": _POSITIVE,
    "code_shape": _POSITIVE,
    "num_codes": _POSITIVE,
    "decay": _PART,
    "fsq_levels": (lambda x: x == 0 or x > 1, "must be 2 or more, or 0: off"),
    "gradient": _one_of("straight_through", "rotation"),
    "depth_dropout": _SHARE,
    "dtype": _one_of("float32", "bfloat16"),
    "reconstruction": _one_of("mse", "l1"),
    "commitment_weight": _NOT_NEGATIVE,
    "perceptual": _one_of("none", "lpips", "features"),
    "perceptual_weight": _NOT_NEGATIVE,
    "entropy_weight": _NOT_NEGATIVE,
    "entropy_temperature": _POSITIVE,
    "adversarial.weight": _NOT_NEGATIVE,
    "adversarial.loss": _one_of("hinge", "vanilla"),
    "adversarial.start": _NOT_NEGATIVE,
    "max_weight": _POSITIVE,
    "ndf": _POSITIVE,
    "adversarial.layers": _POSITIVE,
    "r1_weight": _NOT_NEGATIVE,
    "lecam_weight": _NOT_NEGATIVE,
    "name": _one_of("adam", "adamw", "lion", "adafactor", "muon", "sgd"),
    "learning_rate": _POSITIVE,
    "b1": _PART,
    "b2": _PART,
    "eps": _POSITIVE,
    "mu_dtype": _one_of("float32", "bfloat16"),
    "weight_decay": _NOT_NEGATIVE,
    "clip_norm": _NOT_NEGATIVE,
    "warmup_steps": _NOT_NEGATIVE,
    "min_learning_rate": _NOT_NEGATIVE,
    "ema": _PART,
    "condition": _one_of("none", "class", "text", "class_text"),
    "condition_dropout": _PART,
    "vocab_size": _POSITIVE,
    "text.length": (lambda x: x > 1, "must be 2 tokens or more"),
    "text.tokenizer": _ANY,
    "text.dropout": _PART,
    "variants": _POSITIVE,
    "shard_size": _POSITIVE,
    "weight": _SHARE,
    "width": _POSITIVE,
    "layers": _POSITIVE,
    "heads": _POSITIVE,
    "gelu": _one_of("exact", "quick"),
    "norm": _one_of("layer", "rms"),
    "z_weight": _NOT_NEGATIVE,
    "pieces": _POSITIVE,
    "residual_dropout": _PART,
    "attention_dropout": _PART,
    "embedding_dropout": _PART,
    "remat": _one_of("none", "full", "dots"),
    "every": _POSITIVE,
    "keep": _POSITIVE,
    "keep_every": _NOT_NEGATIVE,
    "eval_every": _POSITIVE,
    "eval_batches": _NOT_NEGATIVE,
    "start": _NOT_NEGATIVE,
    "profile.steps": _NOT_NEGATIVE,
    "transformer.loss.temperature": _POSITIVE,
} | {
    f"sampling.{field.name}": field.metadata["range"]
    for field in dataclasses.fields(SamplingConfig)
}


def limit(name: str) -> Limit:
    """The range of a field, by its dotted name; KeyError where there is none."""
    parts = name.split(".")
    tails = (".".join(parts[i:]) for i in range(len(parts)))
    return LIMITS[next((tail for tail in tails if tail in LIMITS), name)]


def validate(config: ConfigDict) -> None:
    """Returns where the config can be trained.

    Only what the config says by itself: not whether the data is there, nor whether
    the devices make up the mesh.

    Raises:
      ConfigError: one line, with the field, its value and what is wrong with it.
    """
    check_types(fields(config))
    for name, value in fields(config).items():
        if isinstance(value, bool):
            continue
        in_range, problem = limit(name)
        for element in value if isinstance(value, tuple) else (value,):
            _require(config, in_range(element), name, problem)
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
    given = fields(config)
    by_depth = ["rqvae.model.num_codes", "rqvae.model.decay"]
    by_depth += [
        n for n, x in given.items() if n[:9] == "sampling." and type(x) is tuple
    ]
    for name in by_depth:
        count = len(given[name])
        problem = f"has {count} values; give 1, or one for each depth: {depth}"
        _require(config, count in (1, depth), name, problem)

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
    pieces = config.transformer.loss.pieces
    problem = f"does not divide the {rows * columns} positions"
    divides = rows * columns % pieces == 0
    _require(config, divides, "transformer.loss.pieces", problem)
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
    name, size, pieces = f"{stage}.batch_size", section.batch_size, section.accumulate
    problem = f"is not divisible by {stage}.accumulate {pieces}"
    _require(config, size % pieces == 0, name, problem)

    if stage in config.stages:
        # What is -1 depends on the devices; the mesh itself is checked against them.
        parts = max(config.mesh.data, 1) * max(config.mesh.fsdp, 1)
        problem = f"{size // pieces} images at once are not divisible by {parts},"
        problem += " from mesh.data and mesh.fsdp"
        _require(config, size // pieces % parts == 0, name, problem)

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
