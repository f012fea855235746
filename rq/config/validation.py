# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks that a config can be trained: types, ranges, and rules between fields."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from rq.config.errors import ConfigError
from rq.config.image_shape import height_and_width
from rq.config.sampling import SamplingConfig
from rq.config.schema import FIELDS, FROM_PATH, RENAMED, SECTIONS, STAGES, fields

GROUPS = 32  # groups of the autoencoder's GroupNorm
STORED_CODES = 2**16  # codes are stored as 16-bit numbers

# A rule between fields: whether it holds, the field to report, and the problem.
Rule = tuple[bool, str, str]


def unknown_field(name: str) -> ConfigError:
    """Returns the error for an unknown dotted name, with the likely field."""
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
    """Raises ConfigError unless `given` has every field of the schema, well typed.

    Args:
      given: values by dotted name.
    """
    for name in given:
        if name not in FIELDS:
            raise unknown_field(name)
    for name, field in FIELDS.items():
        if name not in given:
            raise ConfigError(f'missing config field "{name}"')
        field.check_type(name, given[name])


def validate(config: ConfigDict) -> None:
    """Checks that a config can be trained.

    Checks only the config itself, not whether the data exists or the devices make up
    the mesh.

    Raises:
      ConfigError: one line with the field, its value and the problem.
    """
    given = fields(config)
    check_types(given)
    for name, field in FIELDS.items():
        field.range.check(name, given[name])
    for holds, name, problem in _rules(config):
        if not holds:
            raise ConfigError(f"{name} = {given[name]!r}: {problem}")


def _rules(config: ConfigDict) -> Iterator[Rule]:
    """Yields all rules. Later rules may assume that earlier ones hold."""
    yield from _run(config)
    if config.transformer.codes_file:
        yield from _codes_file(config)
    else:
        yield from _autoencoder(config)
    yield from _codebooks(config)
    yield from _transformer(config)
    if "features" in config.stages:
        yield from _features(config)
        yield from _training(config, "features")
    yield from _training(config, "rqvae")
    yield from _training(config, "transformer")
    yield from _optimizer(config, "rqvae.adversarial.optimizer", "rqvae")


def _run(config: ConfigDict) -> Iterator[Rule]:
    free = [f"mesh.{name}" for name, size in config.mesh.items() if size == -1]
    problem = f"only one axis may be -1, not {', '.join(free)}"
    yield len(free) < 2, (free or ["mesh.data"])[-1], problem

    ordered = tuple(stage for stage in STAGES if stage in config.stages)
    problem = f"must be some of {STAGES}, each once and in this order"
    yield config.stages and config.stages == ordered, "stages", problem

    data = config.data
    problem = f"data.name = {data.name!r} needs --config.data.path=..."
    yield data.name not in FROM_PATH or data.path, "data.path", problem
    if isinstance(data.resolution, tuple):
        field, problem = "data.resolution", "must be a side, or height and width"
        yield len(data.resolution) == 2, field, problem
        problem = f"square images have one number: {data.resolution[0]}"
        yield data.resolution[0] != data.resolution[1], field, problem
    yield from _source(config)


def _source(config: ConfigDict) -> Iterator[Rule]:
    data, paired = config.data, config.data.source == "pairs"
    problem = "'pairs' of data.name = 'folder' needs --config.data.source_path=..."
    needed = paired and data.name == "folder"
    yield not needed or data.source_path, "data.source", problem
    problem = "'pairs' come from 'folder', 'tsv' or a TFDS set with 'source', not 'tar'"
    yield not (paired and data.name == "tar"), "data.source", problem
    problem = "is read only with data.source = 'pairs' of data.name = 'folder'"
    yield not data.source_path or needed, "data.source_path", problem
    problem = "is read only with data.source = 'pairs'"
    yield paired or not data.swap_pairs, "data.swap_pairs", problem
    if data.source.startswith("lowres:"):
        problem = f"does not divide data.resolution {data.resolution}"
        factor = int(data.source.removeprefix("lowres:"))
        size = height_and_width(data.resolution)
        yield all(side % factor == 0 for side in size), "data.source", problem
    problem = "there are no images with transformer.codes_file"
    without = not config.transformer.codes_file or data.source == "none"
    yield without, "data.source", problem
    problem = "is read only with a data.source"
    used = not config.transformer.source_rqvae or data.source != "none"
    yield used, "transformer.source_rqvae", problem


def _codes_file(config: ConfigDict) -> Iterator[Rule]:
    images = {"features", "rqvae"} & set(config.stages)
    problem = "there are no images with transformer.codes_file: only 'codes' and "
    yield not images, "stages", f"{problem}'transformer' are possible"
    problem = "there are no images to encode with transformer.codes_file"
    yield not config.transformer.online, "transformer.online", problem
    yield config.codes.variants == 1, "codes.variants", problem


def _autoencoder(config: ConfigDict) -> Iterator[Rule]:
    model, resolution = config.rqvae.model, config.data.resolution
    name = "rqvae.model."

    yield model.ch_mult, name + "ch_mult", "must not be empty"
    for mult in model.ch_mult:
        width = model.ch * mult
        problem = f"width {width} = {model.ch} x {mult} is no multiple of {GROUPS}"
        field = "ch" if model.ch % GROUPS else "ch_mult"
        yield width % GROUPS == 0, name + field, problem + " (GroupNorm)"

    levels = len(model.ch_mult)
    factor = 2 ** (levels - 1)
    problem = f"is not divisible by {factor}, from {levels} levels in {name}ch_mult"
    sides = height_and_width(resolution)
    yield all(side % factor == 0 for side in sides), "data.resolution", problem

    heights = tuple(sides[0] // 2**level for level in range(levels))
    for height in model.attn_resolutions:
        problem = f"no level has height {height}; they are {heights}"
        yield height in heights, name + "attn_resolutions", problem

    field = name + "code_shape"
    problem = "must be three numbers: rows, columns, depth"
    yield len(model.code_shape) == 3, field, problem
    names = (("rows", "height"), ("columns", "width"))
    for (what, of), size, side in zip(names, model.code_shape, sides, strict=False):
        left = side // factor
        problem = f"{size} {what} do not divide the feature map's {of} {left}"
        yield left % size == 0, field, f"{problem} = {side} / {factor}"


def _codebooks(config: ConfigDict) -> Iterator[Rule]:
    model, transformer = config.rqvae.model, config.transformer.model
    name, depth, sizes = "rqvae.model.", model.code_shape[2], model.num_codes
    for field in ("num_codes", "decay"):
        count = len(model[field])
        problem = f"has {count} values; give 1, or one for each depth: {depth}"
        yield count in (1, depth), name + field, problem
    SamplingConfig(**config.sampling).check_depth(depth)

    stored = {"codes", "transformer"} & set(config.stages)
    fits = max(sizes) <= STORED_CODES or config.transformer.online
    problem = f"codes above {STORED_CODES:,} cannot be stored: transformer.online=True"
    problem += " trains stage 2 without stored codes"
    yield fits or not stored, name + "num_codes", problem

    one_codebook = model.shared_codebook and depth > 1
    problem = "codes of equal norm need shared_codebook=False, a codebook per depth"
    yield not (model.cosine and one_codebook), name + "cosine", problem

    if (levels := model.fsq_levels) != (0,):
        field = name + "fsq_levels"
        yield 0 not in levels, field, "0 (off) must be the only value"
        grid = math.prod(levels)
        problem = f"is a grid of {grid}, not of {name}num_codes {sizes}"
        yield set(sizes) == {grid}, field, problem
        positions = math.prod(height_and_width(config.data.resolution))
        positions //= 4 ** (len(model.ch_mult) - 1)
        channels = model.embed_dim * positions // math.prod(model.code_shape[:2])
        problem = f"code vectors have {channels} channels, from {name}embed_dim"
        yield len(levels) == channels, field, problem
        problem = "each depth has a finer grid: shared_codebook must be False"
        yield not one_codebook, field, problem
        yield not model.cosine, name + "cosine", "a grid has no angles"

    if config.rqvae.codebook_init == "kmeans":
        field, fixed = "rqvae.codebook_init", model.fsq_levels != (0,)
        problem = "k-means is by distance: not with rqvae.model.cosine or fsq_levels"
        yield not (model.cosine or fixed), field, problem
        batches, number = config.rqvae.codebook_batches, codebook_vectors(config)
        problem = f"{batches} batches have {number:,} vectors for {max(sizes):,} codes"
        yield number >= max(sizes), "rqvae.codebook_batches", problem

    if len(set(sizes)) > 1:
        problem = f"one codebook cannot have sizes {sizes}"
        yield not model.shared_codebook, name + "shared_codebook", problem
        name = "transformer.model."
        problem = f"one classifier cannot serve codebooks of sizes {sizes}"
        yield not transformer.shared_classifier, name + "shared_classifier", problem
        learned = not (
            transformer.body_from_codebook and transformer.head_from_codebook
        )
        shared = learned and transformer.shared_token_embedding
        problem = f"one embedding cannot serve codebooks of sizes {sizes}"
        yield not shared, name + "shared_token_embedding", problem


def _features(config: ConfigDict) -> Iterator[Rule]:
    features, blocks = config.features, len(config.features.model.widths)
    problem = f"must have one number for each of the {blocks} widths"
    yield len(features.model.convs) == blocks > 0, "features.model.convs", problem
    labelled = features.objective != "class" or config.data.num_classes > 0
    problem = "needs labels, but data.num_classes is 0; 'rotation' does not"
    yield labelled, "features.objective", problem


def codebook_vectors(config: ConfigDict) -> int:
    """Returns from how many vectors a codebook is fitted before the first step."""
    part = config.rqvae
    positions = math.prod(part.model.code_shape[:2])
    return part.codebook_batches * part.batch_size * positions


def trained_positions(config: ConfigDict) -> int:
    """Returns at how many positions of an image the head is trained, at least one."""
    positions = math.prod(config.rqvae.model.code_shape[:2])
    return max(1, round(config.transformer.loss.head_fraction * positions))


def number_of_conditions(config: ConfigDict) -> int:
    """Returns how many of class, text and source image a model is conditioned on."""
    kind, source = config.transformer.condition, config.data.source
    return sum(name in kind for name in ("auto", "class", "text")) + (source != "none")


def _transformer(config: ConfigDict) -> Iterator[Rule]:
    transformer, name = config.transformer, "transformer."
    width = transformer.model.width
    for stack in ("body", "head"):
        problem = f"does not divide transformer.model.width {width}"
        heads = transformer.model[stack].heads
        yield width % heads == 0, f"{name}model.{stack}.heads", problem
    positions = math.prod(config.rqvae.model.code_shape[:2])
    problem = f"does not divide the {positions} positions"
    divides = positions % transformer.loss.microbatches == 0
    yield divides, name + "loss.microbatches", problem
    number = trained_positions(config)
    problem = f"does not divide the {number} positions of {name}loss.head_fraction"
    divides = number % transformer.loss.microbatches == 0
    yield divides, name + "loss.microbatches", problem

    anneal = transformer.order_anneal
    problem = "is not two fractions, the first at most the second"
    valid = len(anneal) == 2 and anneal[0] <= anneal[1]
    yield valid, name + "order_anneal", problem
    problem = "needs transformer.order='random' or 'annealed'"
    possible = not config.sampling.parallel_steps or transformer.order != "raster"
    yield possible, "sampling.parallel_steps", problem
    possible = set(config.sampling.levels) == {0} or transformer.order != "raster"
    yield possible, "sampling.levels", problem

    condition, dropout = transformer.condition, transformer.condition_dropout
    labelled = "class" not in condition or config.data.num_classes > 0
    problem = "needs labels, but data.num_classes is 0"
    yield labelled, name + "condition", problem
    problem = "there is no condition to drop, transformer.condition is 'none'"
    parts = number_of_conditions(config)
    yield not dropout or parts > 0, name + "condition_dropout", problem
    problem = (
        f"must be at most 1/{parts + 1}: as many lose all {parts} conditions as lose "
        "each of them"
    )
    possible = parts < 2 or dropout <= 1 / (parts + 1)
    yield possible, name + "condition_dropout", problem
    possible = set(config.sampling.guidance) == {1.0} or dropout > 0
    problem = "needs training with transformer.condition_dropout above 0"
    yield possible, "sampling.guidance", problem


def _training(config: ConfigDict, stage: str) -> Iterator[Rule]:
    name, size = f"{stage}.batch_size", config[stage].batch_size
    count = config[stage].grad_accum_steps
    problem = f"is not divisible by {stage}.grad_accum_steps {count}"
    yield size % count == 0, name, problem
    if stage in config.stages:
        # An axis of -1 depends on the devices; `rq train` checks the mesh against them.
        shards = max(config.mesh.data, 1) * max(config.mesh.fsdp, 1)
        problem = (
            f"microbatches of {size // count} images are not divisible by {shards}"
        )
        yield size // count % shards == 0, name, f"{problem}, from mesh.data, mesh.fsdp"
    yield from _optimizer(config, f"{stage}.optimizer", stage)


def _optimizer(config: ConfigDict, name: str, stage: str) -> Iterator[Rule]:
    given, steps = fields(config), config[stage].steps
    problem = f"is more than {stage}.steps {steps}"
    yield given[f"{name}.warmup_steps"] <= steps, f"{name}.warmup_steps", problem
    rate, minimum = given[f"{name}.learning_rate"], f"{name}.min_learning_rate"
    yield given[minimum] <= rate, minimum, f"is above the learning rate {rate}"
