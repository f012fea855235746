# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Flags that several commands share, and what they mean for a run."""

from __future__ import annotations

import json
from typing import Any

import jax
from absl import logging
from etils import epath

from rq.cli import compilation_cache, own_codes
from rq.cli.flag import Flag
from rq.config import ConfigError, differences, validate, with_absolute_paths
from rq.config.sampling import OPTIONS, SamplingConfig
from rq.config.schema import FIELDS, default, fields
from rq.experiment import Experiment
from rq.models.projection import PRECISIONS
from rq.parallel import atomic_files, processes, sharding
from rq.saved_experiment import config_of, is_saved, open_experiment

_MESH = ("data", "fsdp", "tensor")
_READ = ("sample", "reconstruct", "rank", "evaluate")  # a run directory, do not write

WORKDIR = Flag("workdir", "run directory; --workdir= may be omitted")
MODEL = Flag(
    "workdir",
    "run directory, saved folder, or a model that comes with rq (digits, emoji); "
    "--workdir= may be omitted",
)
STEP = Flag("step", "checkpoint of the last stage: latest, best or a number", "latest")
DTYPE = Flag(
    "dtype",
    "precision of the transformer's weights and products; by default that of training",
    choices=PRECISIONS,
)
PROCESSES = (
    Flag("coordinator", "several processes: host:port of process 0"),
    Flag("num_processes", "several processes: their number", type=int),
    Flag("process_id", "several processes: number of this one, from 0", type=int),
    Flag("distributed", "several processes: JAX finds them, on TPU pods", False, bool),
)
_DEVICES = (
    Flag("mesh", "--config.mesh.* in short, as fsdp=4 or data=2,tensor=4", ""),
    *PROCESSES,
)
RUN = (WORKDIR, *_DEVICES)  # for commands that open a run directory
TRAINED = (MODEL, *_DEVICES)  # for those that open any trained models
CONDITIONS = (
    Flag("classes", "classes, separated by commas; by default all", [], list),
    Flag("text", "a text; repeat the flag for several", [], tuple),
)
REJECTION = (
    Flag("keep", "fraction of samples to keep, the best by a classifier", 1.0, float),
    Flag(
        "classifier", "for --keep: file of `rq convert resnet`; default: the run's own"
    ),
)


def _sampling_flag(name: str) -> Flag:
    """Returns the flag that is short for `--config.sampling.NAME`."""
    option = OPTIONS[name]
    kind = list if isinstance(option.default, tuple) else type(option.default)
    return Flag(name, f"{option.doc} (default: the config's)", type=kind)


SAMPLING = {name: _sampling_flag(name) for name in OPTIONS}


def join_processes(values) -> None:
    """Connects to the other processes and enables the cache of compiled programs.

    Call it before anything uses a device.
    """
    processes.start(
        values.coordinator, values.num_processes, values.process_id, values.distributed
    )
    folder = compilation_cache.enable()
    logging.info(
        "devices: %d x %s, JAX %s; compiled programs: %s",
        jax.device_count(),
        jax.devices()[0].device_kind,
        jax.__version__,
        folder or "not kept",
    )


def require_workdir(values, command: str) -> str:
    """Returns the run directory, or raises ConfigError."""
    if values.workdir is None:
        raise ConfigError(f"rq {command} needs a run directory: --workdir=FOLDER")
    return values.workdir


def require_config(values, command: str):
    """Returns the config of `--config` with absolute paths, or raises ConfigError."""
    if values.config is None:
        raise ConfigError(f"rq {command} needs --config=NAME or FILE.py")
    return with_absolute_paths(values.config)


def open_run(values, command: str) -> Experiment:
    """Connects to other processes and opens the run directory, see `run_config`.

    Commands that only read take saved folders and names of shipped models, too.

    Raises:
      ConfigError: on overrides that the command does not accept.
      FileNotFoundError: if nothing was trained in the run directory.
    """
    workdir = require_workdir(values, command)
    if command not in _READ and is_saved(workdir):
        raise ConfigError(
            f"{workdir} is a saved model, rq {command} needs a run directory: rq "
            f"convert authors --archive={workdir} --out=RUN makes one"
        )
    config = run_config(values, command)
    join_processes(values)
    known = {name: values[name].value for name in ("step", "dtype") if name in values}
    mesh = sharding.make_mesh(**config.mesh)
    experiment = open_experiment(workdir, mesh, config=config, **known)
    if command not in ("sample", "evaluate"):  # which work on codes alone, too
        experiment.require_rqvae(f"rq {command}")
    return experiment


def run_config(values, command: str):
    """Returns the stored config of a run directory with the overrides of the flags.

    The mesh of training is not used: by default each device has a copy of the model.

    Raises:
      ConfigError: on fields that the command may not change or does not read, and on
        values that are out of range.
    """
    stored, flag = config_of(values.workdir), values["config"]
    if isinstance(flag.config_filename, str):  # a whole config, not only overrides
        given = _with_found(with_absolute_paths(flag.value), stored)
        if differing := differences(stored, given, command):
            raise ConfigError(
                f"{values.workdir} was trained with another config: "
                f"{'; '.join(differing)}"
            )
        overrides = fields(given)
    else:
        overrides, before = dict(flag.override_values), fields(stored)
        for name, value in overrides.items():
            if command not in FIELDS[name].changed_by and value != before[name]:
                raise ConfigError(_refusal(name, value, before[name], command))
    if "mesh" in values:
        _add_mesh(values.mesh, overrides)
    for name in OPTIONS:
        if name in values and values[name].present:
            _add_option(name, values[name].value, overrides)
    config = stored.copy_and_resolve_references()
    config.mesh.update(default().mesh)
    if overrides:
        mesh = {name: x for name, x in overrides.items() if name.startswith("mesh.")}
        config.update_from_flattened_dict(overrides | fields({"mesh": default().mesh}))
        validate(config)  # without the mesh: training batches need not divide by it
        config.update_from_flattened_dict(mesh)
    return with_absolute_paths(config)


def _with_found(config, stored):
    """Returns a config with what its run found out at the start, as it found it."""
    part, names = config.transformer, []
    if part.condition == "auto":
        names += ["transformer.condition", "data.num_classes"]
    if part.source_rqvae:
        names += ["transformer.source_shape", "transformer.source_dim"]
    if part.codes_file:
        names += [f"rqvae.model.{name}" for name in own_codes.FITTED]
    config, found = config.copy_and_resolve_references(), fields(stored)
    config.update_from_flattened_dict({name: found[name] for name in names})
    return config


def _refusal(name, value, before, command: str) -> str:
    if not (by := FIELDS[name].changed_by):
        return f"{name} = {value!r}: fixed by training, where it was {before!r}"
    return f"{name} = {value!r}: not read by rq {command}, only by rq {', '.join(by)}"


def _add_mesh(text: str, overrides: dict) -> None:
    for part in filter(None, text.split(",")):
        axis, _, size = part.partition("=")
        if axis not in _MESH or not size.lstrip("-").isdigit():
            raise ConfigError(
                f"--mesh={text}: {part!r} is not one of "
                f"{', '.join(f'{axis}=N' for axis in _MESH)}"
            )
        _add(f"mesh.{axis}", int(size), overrides, f"--mesh={text}")


def _add(name: str, value, overrides: dict, flag: str) -> None:
    if overrides.get(name, value) != value:
        raise ConfigError(
            f"{flag} is not --config.{name}={overrides[name]!r}: give one of them"
        )
    overrides[name] = value


def _add_option(name: str, value, overrides: dict) -> None:
    example = OPTIONS[name].default
    if isinstance(example, tuple):
        value = numbers(name, value, type(example[0]))
    option: dict[str, Any] = {name: value}
    SamplingConfig(**option)  # checks it
    _add(f"sampling.{name}", value, overrides, f"--{name}")


def numbers(flag: str, words, kind) -> tuple:
    """Returns the numbers of a list flag; raises ConfigError if one is not a `kind`."""
    try:
        return tuple(kind(word) for word in words)
    except ValueError:
        raise ConfigError(
            f"--{flag}={','.join(words)}: each must be of type {kind.__name__}"
        ) from None


def conditions(values) -> dict:
    """Returns the classes and texts of the flags."""
    return {
        "classes": numbers("classes", values.classes, int),
        "texts": tuple(values.text),
    }


def refuse(values, why: str, *names: str) -> None:
    """Raises ConfigError if one of these flags is given.

    Args:
      values: the flags.
      why: the end of the message.
      names: names of flags; 'config' or 'config.SECTION' stand for all overrides there.
    """
    given = [name for name in values if values[name].present]
    for name in names:
        if hits := [x for x in given if x == name or x.startswith(f"{name}.")]:
            raise ConfigError(f"--{hits[0]} {why}")


def output(values, experiment, name: str, suffix: str = ".png") -> epath.Path:
    """Returns the file of `--out`, by default `name` in the run's folder `samples`.

    Raises:
      ConfigError: if `--out` does not end in `suffix`.
    """
    path = epath.Path(values.out or experiment.output_path / "samples" / name)
    if path.suffix != suffix:
        raise ConfigError(f"--out={path} must end in {suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_json(path, result) -> None:
    """Prints a result as JSON and writes it to `path`, if not None; in process 0."""
    if processes.is_process_0():
        if path:
            atomic_files.write_json(path, result)
        print(json.dumps(result, indent=2))
