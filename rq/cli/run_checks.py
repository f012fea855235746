# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""What is checked before training computes anything, and the config that it stores."""

from __future__ import annotations

import os

import jax
from etils import epath

from rq.config import STAGES, ConfigError, differences, from_json, to_json
from rq.convert import lpips_weights
from rq.data import DataError, sources
from rq.experiment import CONFIG, finished
from rq.parallel import atomic_files, processes, sharding
from rq.training import checkpoint

TRAINED = ("features", "rqvae", "transformer")  # stages with steps and checkpoints


def is_done(path: epath.Path, stage: str, config) -> bool:
    """Returns whether a trained stage has all its steps and evaluations."""
    done = finished(path, stage, config)
    return done and checkpoint.evaluated(path / stage) >= config[stage].steps


def check_run(config, path: epath.Path, mesh) -> None:
    """Claims the run directory and checks everything that would stop training later.

    Raises:
      MeshError: where a batch does not divide over the devices.
      ConfigError: where a stage lacks what an earlier one makes, the run was made with
        another config, or the directory cannot be written.
      DataError: where data or weights are missing, or are fewer than a batch.
    """
    for stage in TRAINED:
        if stage in config.stages:
            part = config[stage]
            sharding.check_batch(part.batch_size, mesh, part.grad_accum_steps)
    if _encodes(config) and config.codes.batch_size % jax.local_device_count():
        raise ConfigError(
            f"codes.batch_size={config.codes.batch_size} does not divide by the "
            f"{jax.local_device_count()} devices of a process"
        )
    check_perceptual(config, path)
    check_order(config, path)
    with processes.process_0_first("the run directory and its data"):
        claim(path, config)
        check_data(config, path)  # built-in sets prepare themselves here


def _encodes(config) -> bool:
    return "codes" in config.stages and not config.transformer.online


def claim(path: epath.Path, config) -> None:
    """Stores the config in the run directory, and checks it against the one there.

    The stages stored are all that were ever run there.

    Raises:
      ConfigError: naming the fields that differ and must not; or where the directory
        cannot be written.
    """
    file, stored = path / CONFIG, config.copy_and_resolve_references()
    if file.exists():
        before = from_json(file.read_text())
        if changed := differences(before, config):
            raise ConfigError(
                f"{path} was made with another config: {'; '.join(changed)}; "
                "use another --workdir or the same settings"
            )
        ever = {*before.stages, *config.stages}
        stored.stages = tuple(name for name in STAGES if name in ever)
    path.mkdir(parents=True, exist_ok=True)
    if "://" not in str(path) and not os.access(path, os.W_OK):
        raise ConfigError(f"{path} cannot be written: use another --workdir")
    text = to_json(stored)
    if not file.exists() or file.read_text() != text:
        with atomic_files.atomic_write(file) as temporary:
            temporary.write_text(text)


def check_perceptual(config, path: epath.Path) -> None:
    """Checks that stage 1 will have the network of its loss.

    Raises:
      DataError: where the file of LPIPS is missing, with the command that makes it.
      ConfigError: where the feature network neither is trained nor will be.
    """
    kind = config.rqvae.loss.perceptual
    if "rqvae" not in config.stages or finished(path, "rqvae", config):
        return
    if kind == "lpips":
        lpips_weights.load(config.rqvae.lpips_weights)
    elif kind == "features" and "features" not in config.stages:
        if not finished(path, "features", config):
            raise ConfigError(
                "rqvae.loss.perceptual='features' needs the feature network, which "
                f"{path} has not: put 'features' in front of 'rqvae' in stages"
            )


def check_order(config, path: epath.Path) -> None:
    """Checks that stages have what earlier ones make, in this run or in the directory.

    Raises:
      ConfigError: with the stage to add.
    """
    stages = config.stages
    codes = path / "codes" / config.data.train_split / "manifest.json"
    needed = {}
    if "rqvae" not in stages and checkpoint.latest_step(path / "rqvae") is None:
        needed["rqvae"] = {"codes", "transformer"} & set(stages)
    if not ("codes" in stages or config.transformer.online or codes.exists()):
        needed["codes"] = {"transformer"} & set(stages)
    for missing, users in needed.items():
        if users:
            raise ConfigError(
                f"stages = {stages!r}: {min(users)!r} needs {missing!r}, which {path} "
                f"has not: put {missing!r} in front of it"
            )


def check_data(config, path: epath.Path) -> None:
    """Checks that the images which unfinished stages read are there, and suffice.

    Raises:
      DataError: where they are missing, or fewer than a batch.
    """
    data = config.data
    open_stages = [
        stage
        for stage in TRAINED
        if stage in config.stages and not is_done(path, stage, config)
    ]
    online = config.transformer.online
    reads_images = {"features", "rqvae"} | ({"transformer"} if online else set())
    if not (_encodes(config) or reads_images & set(open_stages)):
        return
    number = len(sources.open_split(data, data.train_split))
    sources.open_split(data, data.eval_split)
    for stage in open_stages:
        stored = stage == "transformer" and not online
        examples = number * (config.codes.variants if stored else 1)
        if (size := config[stage].batch_size) > examples:
            raise DataError(
                f"{stage}.batch_size = {size}: the training split has {examples} "
                f"examples; set --config.{stage}.batch_size={examples} or less"
            )
