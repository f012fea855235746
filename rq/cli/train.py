# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains the stages of a config, or resumes a run.

    rq train --config=digits --workdir=runs/digits

Finished stages are skipped, others resume from their last checkpoint. At the end,
pictures and metrics are written to WORKDIR/samples. --config.FIELD=VALUE sets any field
of the config; in an existing run, only those that do not affect the weights.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from absl import logging
from etils import epath

from rq.cli import (
    found_conditions,
    kept_memory,
    own_codes,
    run_checks,
    run_flags,
    source_rqvae,
)
from rq.config import ConfigError, size_text, to_json
from rq.data import given_codes, loader, sources, text
from rq.evaluation import trained_stages, training_pictures
from rq.evaluation.reconstruction import make_reconstructor
from rq.experiment import Experiment
from rq.parallel import processes, run_lock, sharding
from rq.training import checkpoint, codebook_start, init_from, loop
from rq.training.encode import Encoder, encode_split
from rq.training.stages import FeaturesStage, RQVAEStage
from rq.training.stages.rqvae_stage import load_perceptual_distance

CONFIG, POSITIONAL = "file", "workdir"
FLAGS = (run_flags.WORKDIR, *run_flags.PROCESSES)


def run(values) -> None:
    """Trains with the config and in the run directory of the flags."""
    config = run_flags.require_config(values, "train")
    workdir = run_flags.require_workdir(values, "train")
    kept_memory.enable()
    run_flags.join_processes(values)
    run_stages(config, workdir)


def run_stages(config, workdir) -> None:
    """Runs the unfinished stages of `config.stages` in order.

    Stages pass results to later ones only through files in the run directory.

    Raises:
      ConfigError: if another program uses the run directory.
      ConfigError, DataError, MeshError: see `run_checks.check_run`.
    """
    path = checkpoint.folder(workdir)
    mesh = sharding.make_mesh(**config.mesh)
    with run_lock.lock(path):
        config = own_codes.resolve(config, path)
        config = found_conditions.resolve(config, path)
        config = source_rqvae.resolve(config, path)
        images = run_checks.check_run(config, path, mesh)
        if "transformer" in config.stages:
            with processes.process_0_first("the tokenizer"):
                make_tokenizer(config, path)
        done = [name for name in config.stages if _is_done(path, name, config)]
        if processes.is_process_0():
            _describe(config, path, images, done)
        if init_from.gives_rqvae(config, path):
            init_from.write_rqvae(config, path, mesh)
        for name in config.stages:
            if name not in done:
                _STAGES[name](config, path, mesh)
        experiment = Experiment(path, mesh, config=config)
        trained_stages.write_pictures(experiment, path / "samples")


def _is_done(path: epath.Path, stage: str, config) -> bool:
    """Returns whether process 0 finds a stage finished; 'codes' looks for itself."""
    if stage not in run_checks.TRAINED:
        return False
    done = processes.run_on_process_0(
        functools.partial(run_checks.is_done, path, stage, config)
    )
    return bool(processes.broadcast(bool(done)))


def _describe(config, path, images: Mapping[str, int], done: Sequence[str]) -> None:
    """Logs the number of images by split, and the stages with their steps."""
    data, stages = config.data, []
    counts = (f"{number:,} images of {split}" for split, number in images.items())
    size = size_text(data.resolution)
    logging.info("data: %s", ", ".join((data.name, *counts, size)))
    for name in config.stages:
        if name in done:
            stages.append(f"{name} (done)")
        elif name not in run_checks.TRAINED:
            stages.append(name)
        else:
            before = checkpoint.latest_step(path / name)
            start = f"from step {before:,} to " if before else ""
            stages.append(f"{name} ({start}{config[name].steps:,} steps)")
    logging.info("stages: %s", ", ".join(stages))
    logging.info("curves and pictures: tensorboard --logdir=%s", path / "tensorboard")


def make_tokenizer(config, path) -> None:
    """Makes the run's tokenizer, if its condition has text and there is none yet.

    It is that of the model that the run starts from, if there is one and it fits.
    """
    if "text" in config.transformer.condition and not (path / text.FILE).exists():
        if (given := init_from.tokenizer(config, path)) is not None:
            given.save(path / text.FILE)
            return
        if file := config.transformer.codes_file:
            source = given_codes.Captions(given_codes.read(file), config.data)
        else:
            source = sources.open_split(config.data, config.data.train_split)
        text.make(config.transformer.text, source, path / text.FILE)


def train_features(config, path, mesh) -> None:
    """Trains the feature network on images."""
    stage = FeaturesStage(config, mesh, _eval_images(config, "features", mesh))
    source = sources.open_split(config.data, config.data.train_split)
    _fit(stage, source, config, path, lambda _: training_pictures.inputs(stage))


def train_rqvae(config, path, mesh) -> None:
    """Trains stage 1 on images."""
    reconstructor = make_reconstructor(config, mesh)
    eval_images = _eval_images(config, "rqvae", mesh)
    distance = load_perceptual_distance(config, path)
    stage = RQVAEStage(config, mesh, eval_images, distance, reconstructor.evaluate)
    source = sources.open_split(config.data, config.data.train_split)
    pictures = functools.partial(
        training_pictures.reconstructions, stage, reconstructor
    )
    _fit(stage, source, config, path, pictures)


def encode(config, path, mesh) -> None:
    """Stores codes and features of both splits, except for shards already stored.

    With `codes.variants` also those of augmented training images.
    """
    if config.transformer.online:
        logging.info("codes: not stored, transformer.online encodes in each step")
        return
    if "://" in str(path):
        raise ConfigError(
            f"codes are stored on a disk, not in {path}: transformer.online=True "
            "encodes images in each step instead"
        )
    if config.transformer.codes_file:
        own_codes.store(config, path)
        return
    experiment = Experiment(path, mesh, config=config)
    rqvae, source = experiment.rqvae, experiment.source_rqvae
    encoder = Encoder(rqvae, experiment.rqvae_variables, config, source)
    for split in (config.data.train_split, config.data.eval_split):
        directory = path / "codes" / split
        encode_split(split, directory, encoder, experiment.fingerprint, config)


def train_transformer(config, path, mesh) -> None:
    """Trains stage 2 on stored codes, or on images."""
    experiment = Experiment(path, mesh, config=config)
    stage = experiment.transformer_stage(config.log.eval_batches)
    source = experiment.code_source(config.data.train_split)
    tokens = experiment.tokens(config.transformer.text.dropout)
    pictures = functools.partial(training_pictures.samples, stage)
    if not experiment.has_rqvae:
        pictures = lambda state: {}  # noqa: E731
    _fit(stage, source, config, path, pictures, tokens, paired=True)


_STAGES = {
    "features": train_features,
    "rqvae": train_rqvae,
    "codes": encode,
    "transformer": train_transformer,
}


def _eval_images(config, stage: str, mesh):
    """Returns a function that opens a stage's evaluation batches."""
    source = sources.open_split(config.data, config.data.eval_split)
    batch_size, limit = config[stage].batch_size, config.log.eval_batches
    return lambda: loader.in_order(source, config.data, batch_size, limit, mesh=mesh)


def _fit(stage, source, config, path, pictures, tokens=None, paired=False) -> None:
    shard, num_shards = sharding.batch_shard(stage.mesh)
    data = loader.shuffled(
        source,
        config.data,
        batch_size=stage.batch_size,
        seed=config.seed,
        process_index=shard,
        process_count=num_shards,
        tokens=tokens,
        paired=paired,
    )
    first_state = init_from.first_state(config, path, stage.name)
    if stage.name == "rqvae":
        first_state = codebook_start.first_state(config, path, stage, data)
    loop.fit(
        stage,
        data,
        config=config,
        workdir=path,
        mesh=stage.mesh,
        config_json=to_json(config),
        pictures=pictures,
        first_state=first_state,
    )
