# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Whether a config can be trained, found out before any compute.

First that every field is there and of its type, then its own range, then what fields
demand of each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from rq.config.schema import STAGES, ConfigError, check_types, fields

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


# By the field's dotted name, or else by the end of it; for each element of a tuple.
LIMITS: dict[str, Limit] = {
    "seed": _NOT_NEGATIVE,
    "stages": (
        lambda x: x in STAGES,
        f"unknown stage; known: {', '.join(STAGES)} (for several, repeat the flag)",
    ),
    "mesh.data": (lambda x: x > 0 or x == -1, "must be positive, or -1: what is left"),
    "fsdp": _POSITIVE,
    "tensor": _POSITIVE,
    "data.name": _NOT_EMPTY,
    "data.dir": _ANY,
    "train_split": _NOT_EMPTY,
    "eval_split": _NOT_EMPTY,
    "resolution": _POSITIVE,
    "channels": _one_of(1, 3),
    "num_classes": _NOT_NEGATIVE,
    "augment": _one_of("none", "crop_flip", "resized_crop_flip", "center"),
    "threads": _NOT_NEGATIVE,
    "prefetch": _POSITIVE,
    "batch_size": _POSITIVE,
    "steps": _POSITIVE,
    "accumulate": _POSITIVE,
    "ch": _POSITIVE,
    "ch_mult": _POSITIVE,
    "num_res_blocks": _POSITIVE,
    "attn_resolutions": _POSITIVE,
    "z_channels": _POSITIVE,
    "embed_dim": _POSITIVE,
    "code_shape": _POSITIVE,
    "num_codes": _POSITIVE,
    "decay": _PART,
    "dtype": _one_of("float32", "bfloat16"),
    "reconstruction": _one_of("mse", "l1"),
    "commitment_weight": _NOT_NEGATIVE,
    "name": _one_of("adam", "adamw"),
    "learning_rate": _POSITIVE,
    "b1": _PART,
    "b2": _PART,
    "eps": _POSITIVE,
    "weight_decay": _NOT_NEGATIVE,
    "clip_norm": _NOT_NEGATIVE,
    "warmup_steps": _NOT_NEGATIVE,
    "min_learning_rate": _NOT_NEGATIVE,
    "ema": _PART,
    "condition": _one_of("none", "class", "text"),
    "vocab_size": _POSITIVE,
    "text.length": (lambda x: x > 1, "must be 2 tokens or more"),
    "weight": _SHARE,
    "width": _POSITIVE,
    "layers": _POSITIVE,
    "heads": _POSITIVE,
    "gelu": _one_of("exact", "quick"),
    "residual_dropout": _PART,
    "attention_dropout": _PART,
    "embedding_dropout": _PART,
    "remat": _one_of("none", "full", "dots"),
    "temperature": _POSITIVE,
    "top_k": _NOT_NEGATIVE,
    "top_p": _PROBABILITY,
    "every": _POSITIVE,
    "keep": _POSITIVE,
    "eval_every": _POSITIVE,
    "eval_batches": _NOT_NEGATIVE,
    "start": _NOT_NEGATIVE,
    "profile.steps": _NOT_NEGATIVE,
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
    _check_stages(config)
    _check_autoencoder(config)
    _check_codebooks(config)
    _check_transformer(config)
    for stage in ("rqvae", "transformer"):
        _check_training(config, stage)


def _require(config: ConfigDict, ok: bool, name: str, problem: str) -> None:
    if not ok:
        raise ConfigError(f"{name} = {fields(config)[name]!r}: {problem}")


def _check_stages(config: ConfigDict) -> None:
    ordered = tuple(stage for stage in STAGES if stage in config.stages)
    problem = f"must be some of {STAGES}, each once and in this order"
    _require(config, config.stages and config.stages == ordered, "stages", problem)


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
    for name in (
        "rqvae.model.num_codes",
        "rqvae.model.decay",
        "sampling.temperature",
        "sampling.top_k",
        "sampling.top_p",
    ):
        count = len(fields(config)[name])
        problem = f"has {count} values; give 1, or one for each depth: {depth}"
        _require(config, count in (1, depth), name, problem)

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


def _check_transformer(config: ConfigDict) -> None:
    model = config.transformer.model
    for stack in ("body", "head"):
        problem = f"does not divide transformer.model.width {model.width}"
        divides = model.width % model[stack].heads == 0
        _require(config, divides, f"transformer.model.{stack}.heads", problem)
    labelled = config.transformer.condition != "class" or config.data.num_classes > 0
    problem = "needs labels, but data.num_classes is 0"
    _require(config, labelled, "transformer.condition", problem)


def _check_training(config: ConfigDict, stage: str) -> None:
    section = config[stage]
    name, size, pieces = f"{stage}.batch_size", section.batch_size, section.accumulate
    problem = f"is not divisible by {stage}.accumulate {pieces}"
    _require(config, size % pieces == 0, name, problem)

    # mesh.data = -1 depends on the devices; the mesh itself is checked against them.
    parts = max(config.mesh.data, 1) * config.mesh.fsdp
    problem = f"{size // pieces} images at once are not divisible by {parts},"
    problem += " from mesh.data and mesh.fsdp"
    _require(config, size // pieces % parts == 0, name, problem)

    optimizer, name = section.optimizer, f"{stage}.optimizer."
    problem = f"is more than {stage}.steps {section.steps}"
    enough = optimizer.warmup_steps <= section.steps
    _require(config, enough, name + "warmup_steps", problem)
    problem = f"is above the learning rate {optimizer.learning_rate}"
    falls = optimizer.min_learning_rate <= optimizer.learning_rate
    _require(config, falls, name + "min_learning_rate", problem)
