# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Decides which weights of a given model a stage starts from, and takes them.

Arrays are kept if names and shapes agree and they mean the same. Both follow from the
two configs alone, so that nothing is read or computed before this is known.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rq.config import ConfigError
from rq.config.schema import fields
from rq.models.build import rqvae_model, source_sizes, transformer_model
from rq.models.transformer import abstract_codebook
from rq.parallel import sharding
from rq.training.train_state import TrainState

_NAMED = 3  # new arrays of a part that are named, at most
LEAST = 0.01  # fraction of a stage's parameters: keeping fewer is a mistake
_LATENTS = ("data.resolution", "rqvae.model.ch_mult", "rqvae.model.embed_dim")
_GRID, _NUMBER = "rqvae.model.code_shape", "rqvae.model.num_codes"
_CODES = (
    _GRID,
    _NUMBER,
    "rqvae.model.embed_dim",
    "rqvae.model.shared_codebook",
    "rqvae.model.cosine",
    "rqvae.model.fsq_levels",
)
_WIDTH = "transformer.model.width"
_CONDITION = (
    "transformer.condition",
    "data.num_classes",
    "transformer.condition_dropout",
    "transformer.text.vocab_size",
    "transformer.text.length",
)


def _stack(name: str) -> tuple[str, ...]:
    part = f"transformer.model.{name}."
    names = ("layers", "heads", "attention_bias", "mlp_bias", "norm", "qk_norm")
    return (_WIDTH, *(part + field for field in names))


_AUTOENCODER = (
    "data.resolution",
    "data.channels",
    *(
        f"rqvae.model.{name}"
        for name in (
            "ch",
            "ch_mult",
            "num_res_blocks",
            "attn_resolutions",
            "z_channels",
            "embed_dim",
        )
    ),
)
# By part of a model, the beginning of its arrays' names: the fields that their shapes,
# or whether they exist, depend on. Other parts depend on `_AUTOENCODER`.
_DEPENDS = {
    "codebook": (*_LATENTS, *_CODES),
    "condition": (*_CONDITION, _WIDTH),
    "source": (
        "data.source",
        *_LATENTS,
        _GRID,
        _WIDTH,
        "transformer.source_rqvae",
        "transformer.source_shape",
        "transformer.source_dim",
    ),
    "body_positions": (_GRID, _WIDTH),
    "target_positions": (_GRID, _WIDTH, "transformer.order"),
    "head_positions": (_GRID, _WIDTH),
    "body_input": (*_LATENTS, _GRID, _WIDTH, "transformer.model.body_from_codebook"),
    "head_input": (*_LATENTS, _GRID, _WIDTH, "transformer.model.head_from_codebook"),
    "body_stack": _stack("body"),
    "head_stack": _stack("head"),
    "classifier": (
        *_CODES,
        _WIDTH,
        "transformer.model.shared_classifier",
        "transformer.model.head.norm",
    ),
    "token_embedding": (
        *_CODES,
        _WIDTH,
        "transformer.model.shared_token_embedding",
        "transformer.model.body_from_codebook",
        "transformer.model.head_from_codebook",
    ),
}
# Fields that change what arrays of the same shape mean.
_MEANING = {
    "codebook": ("rqvae.model.cosine", "rqvae.model.fsq_levels"),
    "condition": ("transformer.condition",),
    "body_stack": ("transformer.model.body.heads",),
    "head_stack": ("transformer.model.head.heads",),
}
# Arrays with a row, or a column, for each code, besides the codebook.
_BY_CODE = ("classifier_kernel", "classifier_bias", "token_embedding")


class Plan(NamedTuple):
    """What a stage keeps of a given model.

    Attributes:
      stage: 'rqvae' or 'transformer'.
      kept: names of the arrays that are kept.
      text: for people: a line for the whole, and one for each part that is not kept.
      resizes: for people: how the codebook is made of the given one, if it has another
        size; otherwise ''.
    """

    stage: str
    kept: frozenset[str]
    text: tuple[str, ...]
    resizes: str = ""

    @property
    def keeps_codebook(self) -> bool:
        """Whether the codebook is kept as it is."""
        return any(_part(name) == "codebook" for name in self.kept)


def plan(
    stage: str,
    there: ConfigDict,
    here: ConfigDict,
    source,
    same_text: bool = True,
    same_source: bool = True,
) -> Plan:
    """Returns what a stage keeps.

    Args:
      stage: 'rqvae' or 'transformer'.
      there: config of the given model.
      here: config of the run.
      source: where the given model is, for messages.
      same_text: whether both have the same tokenizer, if both have text.
      same_source: whether the codes of source images are of the same RQ-VAE, if both
        have source images.

    Raises:
      ConfigError: if it would keep next to nothing.
    """
    theirs, ours = _arrays(stage, there), _arrays(stage, here)
    differing = _differences(there, here)
    other = {p for p, names in _MEANING.items() if differing.keys() & set(names)}
    renumbered = _renumbered(there, here)
    if there.rqvae.model.code_shape[:2] != here.rqvae.model.code_shape[:2]:
        other |= {"body_positions", "target_positions"}
    if not same_text:
        other.add("condition")
    grids = [(source_sizes(x)[0] or ())[:2] for x in (there, here)]
    if not same_source or grids[0] != grids[1]:
        other.add("source")
    kept = {
        name
        for name, shape in ours.items()
        if theirs.get(name) == shape
        and _part(name) not in other
        and not (renumbered and _is_by_code(name))
    }
    if any(name not in kept for name in ours if _part(name) == "codebook"):
        kept -= {name for name in ours if _part(name) == "codebook"}
    sizes = {n: math.prod(s) for n, s in ours.items() if _part(n) != "codebook"}
    total, number = sum(sizes.values()), sum(sizes[n] for n in kept & sizes.keys())
    changes = _changes(theirs, ours, kept, differing, same_text)
    resizes = ""
    if stage == "rqvae" and not any(_part(name) == "codebook" for name in kept):
        resizes = _resizes(there, here)
    if resizes:
        changes = [
            line.replace("codebook: new", resizes, 1)
            if line.startswith("codebook: new ")
            else line
            for line in changes
        ]
    if number < LEAST * total:
        raise ConfigError(
            f"init_from: stage {stage!r} has nothing in common with {source}: "
            f"{'; '.join(changes)}; use its config, or leave {stage!r} out of "
            "init_stages to start this stage afresh"
        )
    summary = f"{stage}: starts from {source}, {number:,} of {total:,} parameters"
    if any(_part(name) == "codebook" for name in kept):
        summary += " and the codebook"
    return Plan(stage, frozenset(kept), (summary, *changes), resizes)


def given_sizes(there: ConfigDict, here: ConfigDict) -> tuple[int, ...]:
    """Returns the number of codes of a given codebook at each depth of the run."""
    model, depth = rqvae_model(there), rqvae_model(here).depth
    return (model.num_codes[0],) * depth if model.shared_codebook else model.sizes


def _is_by_code(name: str) -> bool:
    """Returns whether an array has a row, or a column, for each code."""
    return _part(name) == "codebook" or name.split("/")[1].startswith(_BY_CODE)


def _renumbered(there: ConfigDict, here: ConfigDict) -> bool:
    """Returns whether code k of a depth is another than it was.

    Because the codebook is new, or has another size: arrays by code are those of the
    largest depth and may have the same shape.
    """
    theirs, ours = rqvae_model(there), rqvae_model(here)
    same = ("cosine", "fsq_levels", "code_dim")
    is_new = any(getattr(theirs, name) != getattr(ours, name) for name in same)
    is_new |= ours.shared_codebook and not theirs.shared_codebook
    return is_new or given_sizes(there, here) != ours.sizes


def _resizes(there: ConfigDict, here: ConfigDict) -> str:
    """Returns how a codebook is made of a given one, or '' if it cannot be.

    Vectors must have the same length; depths with codebooks of their own must be as
    many, or all get theirs from one that they shared.
    """
    theirs, ours = rqvae_model(there), rqvae_model(here)
    learned = all(not m.cosine and m.fsq_levels == (0,) for m in (theirs, ours))
    shared = theirs.shared_codebook
    fits = shared or (not ours.shared_codebook and theirs.depth == ours.depth)
    if not (learned and fits and theirs.code_dim == ours.code_dim):
        return ""
    before, after = given_sizes(there, here), ours.sizes
    pairs = list(zip(before, after, strict=True))
    done = []
    if shared and not ours.shared_codebook:
        done.append("each depth takes its own from the shared one")
    if any(new < old for old, new in pairs):
        done.append("the most used codes stay")
    if any(new > old for old, new in pairs):
        done.append("codes are added from residuals of the first batches")
    return f"codebook: {', '.join(done)}"


def _arrays(stage: str, config: ConfigDict) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each array of a stage's model, by name."""
    rqvae, key = rqvae_model(config), jax.random.key(0)
    if stage == "rqvae":
        shape = (1, *rqvae.image_shape)
        found = jax.eval_shape(rqvae.init, key, jax.ShapeDtypeStruct(shape, "float32"))
    else:
        module = transformer_model(config)
        codes = jax.ShapeDtypeStruct((1, *module.code_shape), "int32")
        found = jax.eval_shape(
            lambda key, codes, codebook: module.init(key, codes, None, codebook),
            key,
            codes,
            abstract_codebook(module),
        )
    return {name: x.shape for name, x in _named(sharding.unbox(dict(found))).items()}


def _named(variables: Any) -> dict[str, Any]:
    """Returns the leaves of 'params' and 'codebook' by name: 'codebook/state/sums'."""
    return {
        jax.tree_util.keystr(keys, simple=True, separator="/"): leaf
        for keys, leaf in jax.tree_util.tree_leaves_with_path(variables)
        if keys[0].key in ("params", "codebook")
    }


def _part(name: str) -> str:
    """Returns the part of a model that an array belongs to."""
    collection, part = name.split("/")[:2]
    if collection == "codebook":
        return "codebook"
    known = [prefix for prefix in _DEPENDS if part.startswith(prefix)]
    return known[0] if known else part


def _differences(there: ConfigDict, here: ConfigDict) -> dict[str, str]:
    """Returns 'FIELD A there, B here' by field, for the fields that differ."""
    theirs, ours = fields(there), fields(here)
    return {
        name: f"{name} {theirs[name]!r} there, {value!r} here"
        for name, value in ours.items()
        if theirs[name] != value
    }


def _changes(theirs, ours, kept, differing, same_text) -> list[str]:
    """Returns a line for each part of which not all is kept, with the reason."""
    lines = []
    for part in dict.fromkeys(map(_part, [*ours, *theirs])):
        new = [n for n in ours if _part(n) == part and n not in kept]
        unused = [n for n in theirs if _part(n) == part and n not in ours]
        if not new and not unused:
            continue
        names = _DEPENDS.get(part, _AUTOENCODER)
        reasons = [text for name, text in differing.items() if name in names]
        if part == "condition" and not same_text:
            reasons.append("another tokenizer")
        every = sum(_part(n) == part for n in ours)
        if len(new) == every:
            what = f"{part}: new"
        elif 0 < len(new) <= _NAMED:
            what = f"{', '.join(n.removeprefix('params/') for n in new)}: new"
        elif new:
            what = f"{part}: {len(new)} of {every} arrays are new"
        else:
            what = f"{part}: {len(unused)} arrays there are not used"
        lines.append(f"{what} ({', '.join(reasons)})")
    return lines


def take(made: Plan, state: TrainState, read: Callable[[str], dict]) -> TrainState:
    """Returns a new state with the kept arrays of a given model.

    Args:
      made: the plan.
      state: before the first step, on the devices.
      read: see `GivenModel`; called in every process.

    Raises:
      ConfigError: if the weights are not those of the given model's config.
    """
    given = _named(read(made.stage))

    def placed(keys, leaf, collection):
        name = jax.tree_util.keystr(keys, simple=True, separator="/")
        name = f"{collection}/{name}"
        if name not in made.kept:
            return leaf
        array = np.asarray(given[name], leaf.dtype) if name in given else None
        if array is None or array.shape != leaf.shape:
            raise ConfigError(f"init_from: {name} is not what its config says")
        found = jax.make_array_from_callback(
            leaf.shape, leaf.sharding, lambda index: array[index]
        )
        return jnp.copy(found)  # in memory of the device's own, which can be donated

    changed = {}
    for collection in ("params", "codebook"):
        if collection == "codebook" and made.stage == "transformer":
            continue  # that of the run's own RQ-VAE
        changed[collection] = jax.tree_util.tree_map_with_path(
            lambda keys, leaf, c=collection: placed(keys, leaf, c),
            getattr(state, collection),
        )
    if jax.tree.leaves(state.ema):
        changed["ema"] = jax.tree.map(jnp.copy, changed["params"])
    return dataclasses.replace(state, **changed)
