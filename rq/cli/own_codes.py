# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Fits the config of a run to the codes of another tokenizer (`codes_file`)."""

from __future__ import annotations

from etils import epath
from ml_collections import ConfigDict

from rq.config import ConfigError, from_json, validate
from rq.data import DataError, given_codes
from rq.experiment import CONFIG
from rq.parallel import processes

FITTED = (  # fields of `rqvae.model` that follow from the file
    "code_shape",
    "num_codes",
    "shared_codebook",
    "embed_dim",
)


def resolve(config: ConfigDict, path: epath.Path) -> ConfigDict:
    """Returns the config of a run with the shapes of its file, if it has one.

    A run that has a config keeps these, and needs the file no more once its codes are
    stored. Process 0 prints what was found.

    Raises:
      DataError: if the file cannot be used.
      ConfigError: if the config asks for what it does not have.
    """
    if not config.transformer.codes_file:
        return config
    with config.unlocked():
        config = config.copy_and_resolve_references()
    file, model = path / CONFIG, config.rqvae.model
    if file.exists():
        before = from_json(file.read_text()).rqvae.model
        model.update({name: before[name] for name in FITTED})
        return config
    given = given_codes.read(config.transformer.codes_file)
    _check(config, given)
    shape, size = given.codes.shape[1:], given.codebook.shape[-2]
    fitted = shape, (size,), given.codebook.ndim == 2, given.codebook.shape[-1]
    model.update(dict(zip(FITTED, fitted, strict=True)))
    validate(config)
    if processes.is_process_0():
        grid = " x ".join(map(str, shape))
        print(f"{len(given.codes):,} examples of {grid} codes from {size:,}")
    return config


def _check(config: ConfigDict, given: given_codes.GivenCodes) -> None:
    """Raises ConfigError or DataError if the config asks for what there is not."""
    part, name = config.transformer, config.transformer.codes_file
    loss = [n for n in ("soft_targets", "stochastic_codes") if part.loss[n]]
    if given.features is None and loss:
        flags = " ".join(f"--config.transformer.loss.{n}=False" for n in loss)
        raise ConfigError(f"{name} has no 'features', which these need: set {flags}")
    for kind, array in (("class", given.labels), ("text", given.captions)):
        if kind in part.condition and array is None:
            what = {"class": "labels", "text": "captions"}[kind]
            raise ConfigError(
                f"transformer.condition={part.condition!r}: no {what} in {name}"
            )
    classes = config.data.num_classes
    if classes and given.num_classes > classes:
        raise DataError(
            f"{name}: labels are within 0..{given.num_classes - 1}, but "
            f"data.num_classes is {classes}"
        )
    training = len(given.splits(config.data)[config.data.train_split])
    if part.batch_size > training:
        raise DataError(
            f"transformer.batch_size = {part.batch_size}: {training} examples are "
            f"there to train on; set --config.transformer.batch_size={training} or less"
        )


def store(config: ConfigDict, path: epath.Path) -> None:
    """Stores the codes of the file in the run directory."""

    def write():
        given = given_codes.read(config.transformer.codes_file)
        given_codes.store(given, path / "codes", config.data, config.codes.shard_size)

    processes.run_on_process_0(write)
