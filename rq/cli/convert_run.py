# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Makes run directories of released models, and exports those of run directories."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
import yaml
from absl import logging

from rq import library
from rq.config import ConfigError, to_json
from rq.convert import (
    archive,
    authors,
    released,
    released_config,
    saved_folder,
    torch_writer,
)
from rq.data import text
from rq.experiment import CONFIG
from rq.models.build import rqvae_model, transformer_model
from rq.parallel import atomic_files
from rq.saved_experiment import open_experiment
from rq.training import checkpoint
from rq.training.checkpoint_manager import write_trained

FORMATS = ("authors", "safetensors")
_FOLDERS = {"rqvae": "stage1", "transformer": "stage2"}  # of exported models
_BUILD: dict[str, Callable] = {"rqvae": rqvae_model, "transformer": transformer_model}
_NAMES = {"rqvae": "RQ-VAE", "transformer": "RQ-Transformer"}


def from_authors(places: Sequence[str], out, ema: bool, tokenizer=None) -> str:
    """Makes a run directory of the authors' models, which appears when it is complete.

    Args:
      places: archives, or folders with model.pt and config.yaml; or one folder that
        `export` wrote as 'safetensors'.
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
    checkpoint.folder(out)  # raises where Orbax could not write
    with atomic_files.new_folder(out) as (temporary, run):
        folders = list(_folders(places, temporary))
        if len(folders) == 1 and saved_folder.is_saved(folders[0]):
            if ema or tokenizer is not None:
                raise ConfigError("--ema, --tokenizer: not for a model of rq's own")
            lines = _from_saved(saved_folder.opened(folders[0]), run)
            return "\n".join([f"wrote {out}", *lines])
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
            step = released_config.STEP
            model = {"params": params, "codebook": codebook}
            write_trained(run, stage, step, config, model)
        (run / CONFIG).write_text(to_json(config))
    return "\n".join([f"wrote {out}", *lines])


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


def _from_saved(saved: saved_folder.SavedFolder, run: pathlib.Path) -> list[str]:
    """Makes a run directory of a saved folder; returns a line for each model."""
    config, lines = saved.config, []
    codebook: dict = {}
    released_config.drop_training_parts(config)
    config.stages = saved.stages
    for stage in saved.stages:
        config[stage].steps = max(saved.info["steps"][stage], released_config.STEP)
    run.mkdir()
    if "text" in config.transformer.condition and "transformer" in saved.stages:
        _copy_tokenizer(saved.path / text.FILE, run, config.transformer.text)
    source = saved.path / saved_folder.SOURCE
    if config.transformer.source_rqvae:
        shutil.copytree(source, run / saved_folder.SOURCE)
    for stage, build in _BUILD.items():
        if stage in saved.stages:
            variables = saved.variables(stage)
            codebook, params = variables.get("codebook", codebook), variables["params"]
            lines.append(_describe(stage, build(config), params, averaged=False))
            if stage == "transformer" and config.transformer.source_rqvae:
                given = saved_folder.opened(source).variables("rqvae")["codebook"]
                codebook = codebook | {"source": given["state"]}
            model = {"params": params, "codebook": codebook}
            write_trained(run, stage, config[stage].steps, config, model)
    (run / CONFIG).write_text(to_json(config))
    return lines


def export(
    workdir,
    out,
    to: str,
    step: str | int = "latest",
    licence: str | None = None,
    half: bool = False,
) -> str:
    """Writes trained models as files for other programs.

    Args:
      workdir: a run directory, a saved folder or the name of a shipped model.
      out: new or empty folder.
      to: 'authors': folders stage1 and, if it was trained, stage2, each with
        config.yaml and model.pt, with the moving average if there is one; or
        'safetensors': what `rq.load` reads, see `rq.convert.saved_folder`.
      step: checkpoint of the last stage.
      licence, half: of 'safetensors', see `rq.Model.save`.

    Returns:
      The paths of what was written, to print.

    Raises:
      FileNotFoundError, CheckpointError: if nothing was trained there.
      ValueError: if the authors' code has no such model.
    """
    if to == "safetensors":
        library.load(workdir, step=step).save(out, licence, half)
        return f"wrote {out}"
    experiment = open_experiment(workdir, step=step)
    experiment.require_rqvae("rq convert export")
    config, lines = experiment.config, [f"wrote {out}"]
    stages = experiment.stages
    sections = {stage: released_config.to_yaml(config, stage) for stage in stages}
    if not stages:
        raise checkpoint.missing(experiment.path / "rqvae", "rqvae", None)
    with atomic_files.new_folder(out) as (_, made):
        made.mkdir()
        for stage in stages:
            folder = made / _FOLDERS[stage]
            folder.mkdir()
            section = yaml.safe_dump(sections[stage], sort_keys=False)
            (folder / released.CONFIG).write_text(section)
            names = _write_model(experiment, stage, folder)
            lines.append(f"  {_FOLDERS[stage]}: {_NAMES[stage]}, {', '.join(names)}")
        if "transformer" in stages and "text" in config.transformer.condition:
            shutil.copy(experiment.path / text.FILE, folder)
    return "\n".join(lines)


def _write_model(experiment, stage: str, folder: pathlib.Path) -> list[str]:
    """Writes the weights of a stage, and returns the names of state dicts."""
    module, number = _BUILD[stage](experiment.config), experiment.step_of(stage)
    logging.info("%s: exporting step %s", stage, number)
    model = experiment.stored(stage)

    def arrays(params) -> Iterator[tuple[str, np.ndarray]]:
        variables = {"params": params, "codebook": model["codebook"]}
        return authors.tensors(module, variables)

    found = {authors.STATE: arrays(model["params"])}
    if model["ema"]:
        found[authors.AVERAGE] = arrays(model["ema"])
    torch_writer.write_torch_file(folder / released.WEIGHTS[0], found)
    return list(found)
