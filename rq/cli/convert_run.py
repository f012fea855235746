# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Makes run directories of released models, and exports those of run directories."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from absl import logging

from rq.config import ConfigError, to_json
from rq.convert import (
    archive,
    authors,
    released,
    released_config,
    safetensors_file,
    torch_writer,
)
from rq.data import text
from rq.experiment import CONFIG, Experiment
from rq.models.build import rqvae_model, transformer_model
from rq.training import checkpoint
from rq.training.checkpoint_manager import Checkpoints
from rq.training.train_state import TrainState

FORMATS = ("authors", "safetensors")
_FOLDERS = {"rqvae": "stage1", "transformer": "stage2"}  # of exported models
_NAMES = {"rqvae": "RQ-VAE", "transformer": "RQ-Transformer"}


def from_authors(places: Sequence[str], out, ema: bool, tokenizer=None) -> str:
    """Makes a run directory of the authors' models, which appears when it is complete.

    Args:
      places: archives, or folders with model.pt and config.yaml.
      out: the run directory, new or empty.
      ema: takes moving averages, of models that have them.
      tokenizer: of a text model, see `rq.data.text.load`; None: from the places.

    Returns:
      What was converted, to print.

    Raises:
      ConfigError: if `out` is taken, no model has a moving average, or there is no
        tokenizer.
      ValueError, OSError: if files are missing, damaged, or not of one pair of models.
    """
    with _new_folder(out) as (temporary, run):
        folders = list(_folders(places, temporary))
        rqvae, transformer = released.find(folders)
        config = released_config.run_config(rqvae, transformer)
        models = {"rqvae": rqvae, "transformer": transformer}
        models = {stage: model for stage, model in models.items() if model is not None}
        averaged = {
            stage: ema and authors.has_average(model.weights)
            for stage, model in models.items()
        }
        if ema and not any(averaged.values()):
            raise ConfigError("--ema: no model has a moving average (state_dict_ema)")
        run.mkdir()
        if "text" in config.transformer.condition:
            found = tokenizer or released.find_tokenizer(folders)
            _copy_tokenizer(found, run, config.transformer.text)
        elif tokenizer is not None:
            raise ConfigError("--tokenizer: the model is not conditioned on text")
        lines, codebook = [], None
        for stage, model in models.items():
            module, variables = authors.load(model.weights, averaged[stage])
            codebook = variables.get("codebook", codebook)
            params = variables["params"]
            lines.append(_describe(stage, module, params, averaged[stage]))
            _write_stage(run, stage, config, params, codebook)
        (run / CONFIG).write_text(to_json(config))
    return "\n".join([f"wrote {out}", *lines])


@contextlib.contextmanager
def _new_folder(out) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    """Yields a temporary folder and one in it that becomes `out` after the body.

    Raises:
      ConfigError: if `out` is not empty, or in a bucket.
    """
    path = checkpoint.folder(out)
    if "://" in os.fspath(path):
        raise ConfigError(f"--out={out}: must be on a disk; copy it to a bucket then")
    path = pathlib.Path(path)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ConfigError(f"--out={out} exists: choose a new folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary, temporary / "made"
        (temporary / "made").rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _folders(places, temporary: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields folders with the files of each place, unpacked if it is an archive."""
    for number, place in enumerate(places):
        place = pathlib.Path(place).expanduser()
        if not place.exists():
            raise FileNotFoundError(f"{place} does not exist")
        if place.is_dir():
            yield place
            continue
        folder = temporary / f"archive_{number}"
        archive.unpack(place, folder, released.is_wanted)
        yield folder


def _copy_tokenizer(path, run: pathlib.Path, options) -> None:
    if path is None:
        raise ConfigError(
            "the text model needs its tokenizer, which is not beside it: --tokenizer="
            "FOLDER with *vocab.json and *merges.txt, or a tokenizer.json"
        )
    made = text.load(path, options.length)
    if made.vocab_size > options.vocab_size:
        raise ConfigError(
            f"{path} has {made.vocab_size} tokens, more than the model's "
            f"{options.vocab_size}: it is another tokenizer"
        )
    made.save(run / text.FILE)


def _describe(stage: str, module, params, averaged: bool) -> str:
    number = sum(leaf.size for leaf in jax.tree.leaves(params))
    shape = " x ".join(map(str, module.code_shape))
    codes = ", ".join(f"{size:,}" for size in module.num_codes)
    average = ", moving average" if averaged else ""
    return (
        f"  {_NAMES[stage]}: {number:,} parameters{average}; codes {shape} of {codes}"
    )


def _write_stage(run: pathlib.Path, stage: str, config, params, codebook) -> None:
    """Writes the one checkpoint of a stage, as its training would at the last step."""
    state = TrainState(
        step=jnp.asarray(released_config.STEP, jnp.int32),
        params=params,
        codebook=codebook,
        opt_state={},
        ema={},
        key=jax.random.key(config.seed),
    )
    with contextlib.closing(Checkpoints(run / stage, stage)) as checkpoints:
        checkpoints.save(released_config.STEP, state, to_json(config), {})
        checkpoints.wait_for_checksums()
        checkpoints.record_evaluation(released_config.STEP)


def export(workdir, out, to: str, step: str | int = "latest") -> str:
    """Writes the models of a run directory as files that PyTorch programs read.

    Args:
      workdir: the run directory.
      out: new or empty folder: stage1 and, if it was trained, stage2, each with
        config.yaml and weights: model.pt, with the moving average if there is one; or
        model.safetensors and model_ema.safetensors.
      to: one of `FORMATS`.
      step: checkpoint of the last stage.

    Returns:
      The paths of what was written, to print.

    Raises:
      FileNotFoundError, CheckpointError: if nothing was trained there.
      ValueError: if the authors' code has no such model.
    """
    experiment = Experiment(workdir, step=step)
    config, lines = experiment.config, [f"wrote {out}"]
    stages = [s for s in _FOLDERS if checkpoint.latest_step(experiment.path / s)]
    sections = {stage: released_config.to_yaml(config, stage) for stage in stages}
    if not stages:
        raise checkpoint.missing(experiment.path / "rqvae", "rqvae", None)
    with _new_folder(out) as (_, made):
        for stage in stages:
            folder = made / _FOLDERS[stage]
            folder.mkdir(parents=True)
            section = yaml.safe_dump(sections[stage], sort_keys=False)
            (folder / released.CONFIG).write_text(section)
            names = _write_model(experiment, stage, folder, to)
            lines.append(f"  {_FOLDERS[stage]}: {_NAMES[stage]}, {', '.join(names)}")
        if "transformer" in stages and "text" in config.transformer.condition:
            shutil.copy(experiment.path / text.FILE, folder)
    return "\n".join(lines)


def _write_model(experiment, stage: str, folder: pathlib.Path, to: str) -> list[str]:
    """Writes the weights of a stage, and returns the names of state dicts or files."""
    build = {"rqvae": rqvae_model, "transformer": transformer_model}[stage]
    module, number = build(experiment.config), experiment.step_of(stage)
    logging.info("%s: exporting step %s", stage, number)
    model, _ = checkpoint.load_model(experiment.path / stage, stage, number)

    def arrays(params) -> Iterator[tuple[str, np.ndarray]]:
        variables = {"params": params, "codebook": model["codebook"]}
        return authors.tensors(module, variables)

    found = {authors.STATE: arrays(model["params"])}
    if model["ema"]:
        found[authors.AVERAGE] = arrays(model["ema"])
    if to == "authors":
        torch_writer.write_torch_file(folder / released.WEIGHTS[0], found)
        return list(found)
    names = {authors.STATE: "model", authors.AVERAGE: "model_ema"}
    for name, pairs in found.items():
        safetensors_file.write(folder / f"{names[name]}.safetensors", pairs)
    return [f"{names[name]}.safetensors" for name in found]
