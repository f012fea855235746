# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Translates between config.yaml of the released models and the config of a run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from rq.config import default, validate
from rq.config.schema import FROM_PATH
from rq.convert import released, rqvae_weights, stored_zip, transformer_weights
from rq.convert.names import one_or_each, plain
from rq.convert.released import Model
from rq.models import RQVAE
from rq.models.build import rqvae_model, transformer_model

STEP = 1  # of checkpoints: how long the released models were trained is not known
# Fields of `data` for `dataset.type` in the released files; other types are used as
# they are, as `data.name`.
DATA_SETS = {
    "imagenet": dict(name="imagenet2012", augment="crop_flip"),
    "ffhq": dict(name="folder", path="~/data/ffhq", augment="resized_crop_flip"),
    "cc3m": dict(name="tar", path="~/data/cc3m", augment="dalle"),
    "lsun-church": dict(name="lsun/church_outdoor", augment="center"),
    "lsun-cat": dict(name="lsun/cat", augment="center"),
    "lsun-bedroom": dict(name="lsun/bedroom", augment="center"),
}
# Fields of `data` and `transformer` that exported files have in `dataset`.
_DATA = ("train_split", "eval_split", "holdout", "num_classes", "augment")
_CONDITION = ("condition", "condition_dropout")
_SAMPLING = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p"}
# Attributes of modules that have no effect on trained weights.
_FREE = ("parent", "name", "dtype", "remat", "codebook_sums")
_TRAINING_ONLY = ("gradient", "depth_dropout", "scaled_init")


def run_config(rqvae: Model, transformer: Model | None) -> ConfigDict:
    """Returns the config of a run directory with the released models.

    Losses that need other networks are off, so that `rq evaluate` needs none. The
    RQ-Transformer reads images, so that no codes need to be stored.

    Raises:
      ValueError, ConfigError: if config.yaml lacks fields or has impossible ones, or if
        the RQ-Transformer is not for the codes of this RQ-VAE.
    """
    config, module = default(), rqvae_weights.make_module(rqvae.arch)
    dataset = dict((transformer or rqvae).section("dataset"))
    with _readable_errors(rqvae):
        _set_data(config.data, dataset, module)
        _set_model(config.rqvae.model, module)
    config.stages = ("rqvae",)
    config.rqvae.steps = config.transformer.steps = STEP
    drop_training_parts(config)
    if transformer is not None:
        config.stages = ("rqvae", "transformer")
        with _readable_errors(transformer):
            _set_transformer(config, transformer, module)
            _set_sampling(config.sampling, transformer.section("sampling"))
    validate(config)
    return config


def drop_training_parts(config: ConfigDict) -> None:
    """Changes a config to that of models without losses' networks and stored codes."""
    config.rqvae.loss.perceptual = "none"
    config.rqvae.adversarial.weight = 0.0
    config.transformer.online = True


@contextlib.contextmanager
def _readable_errors(model: Model):
    """Names the file in errors of fields of the wrong type."""
    try:
        yield
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        path = model.weights.parent / released.CONFIG
        raise ValueError(f"{path}: {stored_zip.one_line(error)}") from None


def _set_data(data: ConfigDict, dataset: Mapping[str, Any], module: RQVAE) -> None:
    kind = str(dataset.get("type") or data.name)
    data.update(DATA_SETS.get(kind.lower(), {"name": kind}))
    if data.name in FROM_PATH and not data.path:
        data.path = "~/data/images"
    data.update({name: dataset[name] for name in _DATA if name in dataset})
    data.resolution, data.channels = module.resolution, module.image_channels


def _set_model(section: ConfigDict, module) -> None:
    """Copies attributes of a module to the fields of the same name."""
    for name, value in section.items():
        found = getattr(module, name, value)
        if isinstance(value, ConfigDict):
            _set_model(value, found)
        elif name not in _FREE:
            section[name] = found


def _set_transformer(config: ConfigDict, model: Model, rqvae: RQVAE) -> None:
    part, dataset = config.transformer, model.section("dataset")
    module = transformer_weights.make_module(model.arch, rqvae.num_codes)
    _set_model(part.model, module)
    classes, length = module.num_conditions, module.condition_length
    likely = "text" if length > 1 else "class" if classes > 1 else "none"
    part.update(
        {"condition": likely} | {k: dataset[k] for k in _CONDITION if k in dataset}
    )
    dropped = part.condition_dropout > 0
    if part.condition == "class":
        config.data.num_classes = classes - dropped
    if "text" in part.condition:
        has_class = part.condition == "class_text"
        part.text.length = length - has_class
        labels = (config.data.num_classes + dropped) * has_class
        part.text.vocab_size = classes - labels
    wrong = [
        f"{name} {theirs}, not {ours}"
        for name, theirs, ours in _differences(module, transformer_model(config))
        # Without code vectors of the codebook their length does not matter.
        if name != "input_dim" or module.body_from_codebook or module.head_from_codebook
    ]
    if wrong:
        raise ValueError(
            f"the RQ-Transformer is not for this RQ-VAE: it has {'; '.join(wrong)}"
        )


def _set_sampling(options: ConfigDict, sampling: Mapping[str, Any]) -> None:
    found = {
        name: one_or_each(sampling[theirs])
        for name, theirs in _SAMPLING.items()
        if sampling.get(theirs) is not None
    }
    if "top_p" in found:
        found["top_p"] = tuple(min(p, 1.0) for p in found["top_p"])
    options.update(found)


def _differences(a, b) -> list[tuple[str, Any, Any]]:
    """Returns the attributes that differ between modules: name and both values."""
    names = [field.name for field in dataclasses.fields(a)]
    return [
        (name, getattr(a, name), getattr(b, name))
        for name in names
        if name not in _FREE and getattr(a, name) != getattr(b, name)
    ]


def to_yaml(config: ConfigDict, stage: str) -> dict[str, Any]:
    """Returns the contents of config.yaml for a stage of a run: inverts `run_config`.

    Args:
      config: of the run.
      stage: 'rqvae' or 'transformer'.

    Raises:
      ValueError: if the model has a part that the authors' code does not have.
    """
    weights: Any = rqvae_weights
    module: Any = rqvae_model(config)
    if stage == "transformer":
        weights, module = transformer_weights, transformer_model(config)
    arch = weights.to_arch(module)
    different = [
        name
        for name, _, _ in _differences(module, weights.make_module(arch))
        if name not in _TRAINING_ONLY
    ]
    if different:
        raise ValueError(
            f"the authors' code has no such model: {', '.join(different)} of {stage}"
        )
    kinds = {fields["name"]: kind for kind, fields in DATA_SETS.items()}
    dataset = {"type": kinds.get(config.data.name, config.data.name)}
    dataset |= {name: config.data[name] for name in _DATA}
    if stage == "rqvae":
        return {"dataset": dataset, "arch": arch}
    part = config.transformer
    dataset |= {name: part[name] for name in _CONDITION}
    dataset["vocab_size"] = arch["vocab_size"]
    if "text" in part.condition:
        dataset["context_length"] = part.text.length
    sampling = {
        theirs: plain(config.sampling[name]) for name, theirs in _SAMPLING.items()
    }
    if sampling["top_k"] == 0:
        sampling["top_k"] = arch["vocab_size"]
    return {"dataset": dataset, "arch": arch, "sampling": sampling}
