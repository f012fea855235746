# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks a run before training computes anything, and stores its config."""

from __future__ import annotations

import importlib.util
import os

import jax
import numpy as np
from etils import epath

from rq.config import STAGES, ConfigError, differences, from_json, to_json
from rq.convert import lpips_weights
from rq.data import DataError, source_images, sources
from rq.data.augment import transforms
from rq.experiment import CONFIG, finished
from rq.parallel import atomic_files, processes, sharding
from rq.training import checkpoint, init_from

TRAINED = ("features", "rqvae", "transformer")  # stages with steps and checkpoints


def is_done(path: epath.Path, stage: str, config) -> bool:
    """Returns whether a trained stage has all its steps and evaluations."""
    done = finished(path, stage, config)
    return done and checkpoint.evaluated(path / stage) >= config[stage].steps


def check_run(config, path: epath.Path, mesh) -> dict[str, int]:
    """Checks everything that would stop training later, and stores the config.

    The caller holds the lock of the run directory.

    Returns:
      See `check_data`.

    Raises:
      MeshError: if a batch does not divide over the devices.
      ConfigError: if a stage lacks the results of an earlier one or has nothing in
        common with the model that it is to start from, the run was made with another
        config, or the directory cannot be written.
      DataError: if data or weights are missing, or a split is smaller than a batch.
    """
    for stage in TRAINED:
        if stage in config.stages:
            part = config[stage]
            sharding.check_batch(part.batch_size, mesh, part.grad_accum_steps)
    if _encodes(config) and config.codes.batch_size % jax.local_device_count():
        raise ConfigError(
            f"codes.batch_size={config.codes.batch_size} is not divisible by the "
            f"{jax.local_device_count()} devices of a process"
        )
    processes.run_on_process_0(lambda: _check_directory(config, path))
    with processes.process_0_first("the data of the run"):
        return check_data(config, path)  # built-in sets prepare themselves here


def _check_directory(config, path: epath.Path) -> None:
    check_wandb(config)
    check_perceptual(config, path)
    check_order(config, path)
    init_from.check(config, path)
    claim(path, config)


def _encodes(config) -> bool:
    part = config.transformer
    return "codes" in config.stages and not (part.online or part.codes_file)


def claim(path: epath.Path, config) -> None:
    """Stores the config in the run directory, after comparing it with the one there.

    The stored `stages` are all that were ever run there.

    Raises:
      ConfigError: if fields differ that must not, with their names; or if the directory
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


def check_wandb(config) -> None:
    """Raises ConfigError if `log.wandb` is set but its package is missing."""
    # A folder "wandb" in the current one would be found, but has no origin.
    found = importlib.util.find_spec("wandb") if config.log.wandb else None
    if config.log.wandb and (found is None or found.origin is None):
        raise ConfigError(
            f"log.wandb={config.log.wandb!r} needs a package that is not installed: "
            "pip install 'rq[wandb]', or leave log.wandb out"
        )


def check_perceptual(config, path: epath.Path) -> None:
    """Checks that the network of stage 1's perceptual loss exists or will be trained.

    Raises:
      DataError: if the file of LPIPS weights is missing, with the command to make it.
      ConfigError: if the feature network is neither trained nor in `stages`.
    """
    kind = config.rqvae.loss.perceptual
    if "rqvae" not in config.stages or finished(path, "rqvae", config):
        return
    if kind == "lpips":
        lpips_weights.load(config.rqvae.lpips_weights)
    elif kind == "features" and "features" not in config.stages:
        if not finished(path, "features", config):
            raise ConfigError(
                "rqvae.loss.perceptual='features' needs the feature network, which is "
                f"not in {path}: add 'features' before 'rqvae' to stages"
            )


def check_order(config, path: epath.Path) -> None:
    """Checks that results of earlier stages exist or will be made by this run.

    Raises:
      ConfigError: if not, with the stage to add.
    """
    stages = config.stages
    codes = path / "codes" / config.data.train_split / "manifest.json"
    needed = {}
    missing = checkpoint.latest_step(path / "rqvae") is None
    given = config.transformer.codes_file or init_from.gives_rqvae(config, path)
    if "rqvae" not in stages and missing and not given:
        needed["rqvae"] = {"codes", "transformer"} & set(stages)
    if not ("codes" in stages or config.transformer.online or codes.exists()):
        needed["codes"] = {"transformer"} & set(stages)
    for missing, users in needed.items():
        if users:
            raise ConfigError(
                f"stages = {stages!r}: {min(users)!r} needs {missing!r}, which is not "
                f"in {path}: add {missing!r} before it"
            )


def check_data(config, path: epath.Path) -> dict[str, int]:
    """Checks that unfinished stages have images, and enough of them for a batch.

    The first image of each split is read and transformed.

    Returns:
      The number of images by split; {} if the unfinished stages read no images.

    Raises:
      DataError: if not.
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
        return {}
    splits = data.train_split, data.eval_split
    opened = [sources.open_split(data, split, paired=True) for split in splits]
    for source, transform in zip(opened, transforms(data), strict=True):
        rng = np.random.default_rng(0)
        source_images.transformed(source[0], transform, data, rng, paired=True)
    number = len(opened[0])
    for stage in open_stages:
        stored = stage == "transformer" and not online
        examples = number * (config.codes.variants if stored else 1)
        if (size := config[stage].batch_size) > examples:
            raise DataError(
                f"{stage}.batch_size = {size}: the training split has {examples} "
                f"examples; set --config.{stage}.batch_size={examples} or less"
            )
    return {split: len(s) for split, s in zip(splits, opened, strict=True)}
