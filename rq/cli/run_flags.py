# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Flags that several commands have: run directory, processes, sampling, conditions."""

from __future__ import annotations

import functools
import json

import jax
from absl import flags, logging
from etils import epath

from rq.config import ConfigError, differences, validate, with_absolute_paths
from rq.config.sampling import OPTIONS, SamplingConfig
from rq.config.schema import FIELDS, default, fields
from rq.experiment import Experiment, stored_config
from rq.parallel import atomic_files, processes, sharding

_MESH = ("data", "fsdp", "tensor")


def define_processes(values) -> None:
    """Defines the flags by which several processes find each other."""
    text = "several processes: "
    integer = functools.partial(flags.DEFINE_integer, flag_values=values)
    flags.DEFINE_string(
        "coordinator",
        None,
        f"{text}host:port of the first, in all of them",
        flag_values=values,
    )
    integer("num_processes", None, f"{text}how many")
    integer("process_id", None, f"{text}which this is, from 0")
    flags.DEFINE_bool(
        "distributed", False, f"{text}JAX finds them, on TPU pods", flag_values=values
    )


def join_processes(values) -> None:
    """Joins the other processes; before anything touches a device."""
    processes.start(
        values.coordinator, values.num_processes, values.process_id, values.distributed
    )
    logging.info("JAX %s on %s", jax.__version__, jax.devices())


def define_workdir(values, text: str = "the run directory") -> None:
    """Defines the flag that every command with a run directory has."""
    flags.DEFINE_string(
        "workdir", None, f"{text}; may stand without --workdir=", flag_values=values
    )


def require_workdir(values, command: str) -> str:
    """Returns the run directory, or raises ConfigError."""
    if values.workdir is None:
        raise ConfigError(f"rq {command} needs a run directory: --workdir=FOLDER")
    return values.workdir


def define_run(values, step: bool = True, dtype: bool = True) -> None:
    """Defines the flags of commands that open a run directory."""
    define_workdir(values)
    string = functools.partial(flags.DEFINE_string, flag_values=values)
    if step:
        string(
            "step", "latest", "checkpoint of the last stage: latest, best or a number"
        )
    if dtype:
        flags.DEFINE_enum(
            "dtype",
            None,
            ["float32", "bfloat16"],
            "of the transformer's weights; as they are stored where not given",
            flag_values=values,
        )
    string("mesh", "", "devices, as fsdp=4 or data=2,tensor=4: --config.mesh.*")
    define_processes(values)


def open_run(values, command: str) -> Experiment:
    """Joins other processes and opens the run directory with the config of the flags.

    Raises:
      ConfigError: on overrides that the command does not take.
      FileNotFoundError: where nothing was ever trained there.
    """
    require_workdir(values, command)
    config = run_config(values, command)
    join_processes(values)
    known = {name: values[name].value for name in ("step", "dtype") if name in values}
    mesh = sharding.make_mesh(**config.mesh)
    return Experiment(values.workdir, mesh, config=config, **known)


def run_config(values, command: str):
    """Returns the stored config of a run directory, with the overrides of the flags.

    The mesh is not training's: all devices hold copies of the model, unless the flags
    say otherwise.

    Raises:
      ConfigError: on fields that the command may not change, or does not read, and on
        values that are out of range.
    """
    stored, flag = stored_config(values.workdir), values["config"]
    if isinstance(flag.config_filename, str):  # not overrides alone, but a whole config
        if differing := differences(stored, flag.value, command):
            raise ConfigError(
                f"{values.workdir} was trained with another config: "
                f"{'; '.join(differing)}"
            )
        overrides = fields(flag.value)
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
        validate(config)  # training's batches need not divide by another mesh
        config.update_from_flattened_dict(mesh)
    return with_absolute_paths(config)


def _refusal(name, value, before, command: str) -> str:
    by = FIELDS[name].changed_by
    if not by:
        reason = f"fixed by training, where it was {before!r}"
    else:
        reason = f"not read by rq {command}, only by rq {', '.join(by)}"
    return f"{name} = {value!r}: {reason}"


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


def define_sampling(values, names=tuple(OPTIONS)) -> None:
    """Defines a flag for each sampling option: the same as `--config.sampling.NAME`."""
    for name in names:
        option = OPTIONS[name]
        text = f"{option.doc} (default: the config's)"
        if isinstance(option.default, tuple):
            flags.DEFINE_list(name, None, text, flag_values=values)
        elif isinstance(option.default, int):
            flags.DEFINE_integer(name, None, text, flag_values=values)
        else:
            flags.DEFINE_string(name, None, text, flag_values=values)


def _add_option(name: str, value, overrides: dict) -> None:
    example = OPTIONS[name].default
    if isinstance(example, tuple):
        value = numbers(name, value, type(example[0]))
    SamplingConfig(**{name: value})
    _add(f"sampling.{name}", value, overrides, f"--{name}")


def numbers(flag: str, words, kind) -> tuple:
    """Returns the numbers of a list flag.

    Raises:
      ConfigError: where one is no number of this kind.
    """
    try:
        return tuple(kind(word) for word in words)
    except ValueError:
        raise ConfigError(
            f"--{flag}={','.join(words)}: each must be of type {kind.__name__}"
        ) from None


def define_conditions(values) -> None:
    """Defines `--classes` and `--text`."""
    flags.DEFINE_list(
        "classes", [], "comma-separated; all classes if none", flag_values=values
    )
    flags.DEFINE_multi_string(
        "text", [], "a text; repeat it for several", flag_values=values
    )


def conditions(values) -> dict:
    """Returns the classes and texts of the flags."""
    return {
        "classes": numbers("classes", values.classes, int),
        "texts": tuple(values.text),
    }


def define_rejection(values) -> None:
    """Defines the flags of rejection sampling."""
    flags.DEFINE_float(
        "keep",
        1.0,
        "fraction of samples kept, the best by a classifier; 1: all",
        flag_values=values,
    )
    flags.DEFINE_string(
        "classifier",
        None,
        "for --keep: file of `rq convert resnet`; that of stage features if none",
        flag_values=values,
    )


def refuse(values, why: str, *names: str) -> None:
    """Raises ConfigError where one of these flags is given.

    Args:
      values: the flags.
      why: the end of the message.
      names: of flags; 'config' or 'config.SECTION': any override there.
    """
    given = [name for name in values if values[name].present]
    for name in names:
        if hits := [x for x in given if x == name or x.startswith(f"{name}.")]:
            raise ConfigError(f"--{hits[0]} {why}")


def output(values, name: str, suffix: str = ".png") -> epath.Path:
    """Returns the file of `--out`, or one of this name in the run's folder `samples`.

    Raises:
      ConfigError: where `--out` ends otherwise.
    """
    path = epath.Path(values.out or epath.Path(values.workdir) / "samples" / name)
    if path.suffix != suffix:
        raise ConfigError(f"--out={path} must end in {suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_json(path, result) -> None:
    """Prints a result as JSON in process 0, and writes it if there is a path."""
    if processes.is_process_0():
        if path:
            atomic_files.write_json(path, result)
        print(json.dumps(result, indent=2))
