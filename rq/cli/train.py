# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Trains the stages of a config, or goes on with a run.

    rq train --config=configs/digits.py --workdir=runs/digits

Stages that are finished are skipped, others resume where they were. At the end there
are pictures and metrics in WORKDIR/samples. Any field of the config can be set,
--config.FIELD=VALUE; those that shape the weights must stay as they were in a run.
"""

from __future__ import annotations

import functools
import itertools
import json

from absl import logging
from etils import epath

from rq import experiment as workdirs
from rq import visualize
from rq.cli import run_checks, run_flags
from rq.config import ConfigError, to_json, with_absolute_paths
from rq.convert import lpips_weights
from rq.data import loader, sources, text
from rq.evaluation import trained_stages, training_pictures
from rq.evaluation.reconstruction import make_reconstructor
from rq.models.networks.lpips import own_distance
from rq.parallel import atomic_files, preemption, processes, run_lock, sharding
from rq.training import checkpoint, loop
from rq.training.encode import Encoder, encode_split
from rq.training.stages import FeaturesStage, RQVAEStage

CONFIG, POSITIONAL = "file", "workdir"
COUNTED = 10_000  # captions of which it is counted how many are cut


def define(values) -> None:
    """Defines the flags."""
    run_flags.define_workdir(values, "the run directory: all that training makes")
    run_flags.define_processes(values)


def run(values) -> None:
    """Trains, with the config and in the run directory of the flags."""
    config = require_config(values, "train")
    workdir = run_flags.require_workdir(values, "train")
    run_flags.join_processes(values)
    run_stages(config, workdir)


def require_config(values, command: str):
    """Returns the validated config of `--config`; its paths are absolute.

    Raises:
      ConfigError: where it is not given.
    """
    if values.config is None:
        raise ConfigError(f"rq {command} needs --config=configs/FILE.py")
    return with_absolute_paths(values.config)


def run_stages(config, workdir) -> None:
    """Runs `config.stages` in order; what is finished is skipped.

    Each finds out from the run directory whether it is finished, and hands the next
    one nothing but files.

    Raises:
      ConfigError, DataError, MeshError: see `run_checks.check_run`.
    """
    path = checkpoint.folder(workdir)
    mesh = sharding.make_mesh(**config.mesh)
    run_checks.check_run(config, path, mesh)
    with run_lock.lock(path):
        _run_stages(config, path, mesh)


def _run_stages(config, path: epath.Path, mesh) -> None:
    steps = {
        "features": train_features,
        "rqvae": train_rqvae,
        "codes": encode,
        "transformer": train_transformer,
    }
    if "transformer" in config.stages:
        with processes.process_0_first("the tokenizer"):
            make_tokenizer(config, path)
    experiment = workdirs.Experiment(path, mesh, config=config)
    for name in config.stages:
        if name in run_checks.TRAINED and _all_agree_it_is_done(path, name, config):
            logging.info("%s: all %d steps are done", name, config[name].steps)
            continue
        logging.info("%s: starting", name)
        steps[name](config, path, mesh)
    write_pictures(experiment, path / "samples")


def _all_agree_it_is_done(path: epath.Path, stage: str, config) -> bool:
    """Returns whether a stage is finished, as process 0 finds it."""
    done = processes.run_on_process_0(
        functools.partial(run_checks.is_done, path, stage, config)
    )
    return bool(processes.broadcast(bool(done)))


def train_features(config, path, mesh) -> None:
    """Trains the feature network on images."""
    stage = FeaturesStage(config, mesh, _eval_images(config, "features", mesh))
    _fit_on_images(stage, config, path, lambda _: training_pictures.inputs(stage))


def train_rqvae(config, path, mesh) -> None:
    """Trains stage 1 on images."""
    reconstructor = make_reconstructor(config, mesh)
    stage = RQVAEStage(
        config,
        mesh,
        _eval_images(config, "rqvae", mesh),
        perceptual_distance(config, path),
        reconstructor.evaluate,
    )
    pictures = functools.partial(
        training_pictures.reconstructions, stage, reconstructor
    )
    _fit_on_images(stage, config, path, pictures)


def _eval_images(config, stage: str, mesh):
    """Returns a function that opens a stage's evaluation batches."""
    source = sources.open_split(config.data, config.data.eval_split)
    batch_size, limit = config[stage].batch_size, config.log.eval_batches
    return lambda: loader.in_order(source, config.data, batch_size, limit, mesh=mesh)


def _fit_on_images(stage, config, path, pictures) -> None:
    source = sources.open_split(config.data, config.data.train_split)
    _fit(stage, source, config, path, pictures)


def perceptual_distance(config, path):
    """The frozen network of stage 1's loss and its parameters; None where it has none.

    Raises:
      DataError: where the file of LPIPS is missing.
    """
    kind = config.rqvae.loss.perceptual
    if kind == "none":
        return None
    if kind == "lpips":
        return lpips_weights.load(config.rqvae.lpips_weights)
    features, _ = checkpoint.load_model(path / "features", "features")
    params = (features["ema"] or features["params"])["network"]
    model = config.features.model
    return own_distance(params, model.widths, model.convs, config.data.channels)


def encode(config, path, mesh) -> None:
    """Stores codes and features of both splits, shard by shard, where they are not.

    With `codes.variants` the training split has augmented images as well.
    """
    if config.transformer.online:
        logging.info("codes: none are stored, transformer.online encodes in each step")
        return
    if "://" in str(path):
        raise ConfigError(
            f"codes are stored on a disk, not in {path}: transformer.online=True "
            "encodes images in each step instead"
        )
    experiment = workdirs.Experiment(path, mesh, config=config)
    encoder = Encoder(experiment.rqvae, experiment.rqvae_variables, config)
    for split in (config.data.train_split, config.data.eval_split):
        directory = path / "codes" / split
        encode_split(split, directory, encoder, experiment.fingerprint, config)


def train_transformer(config, path, mesh) -> None:
    """Stage 2 on stored codes, or on images."""
    experiment = workdirs.Experiment(path, mesh, config=config)
    stage = experiment.transformer_stage(config.log.eval_batches)
    source = experiment.code_source(config.data.train_split)
    tokens = experiment.tokens(config.transformer.text.dropout)
    pictures = functools.partial(training_pictures.samples, stage)
    _fit(stage, source, config, path, pictures, tokens)


def make_tokenizer(config, path) -> None:
    """Leaves in the workdir the tokenizer that the config names, or trains it there.

    Trained on the captions of the training split; nothing where the condition has no
    text, or where it is there already.

    Raises:
      DataError: where there are no captions, or the named files are no tokenizer.
    """
    options, file = config.transformer.text, path / text.FILE
    if "text" not in config.transformer.condition or file.exists():
        return
    source = sources.open_split(config.data, config.data.train_split)

    def captions():
        return (line for i in range(len(source)) for line in source.captions(i))

    if options.tokenizer:
        text.load(options.tokenizer, options.length).save(file)
    else:
        text.train(captions(), options.vocab_size, file)
    some = itertools.islice(captions(), COUNTED)
    number, cut = text.load(file, options.length).count_cut(some)
    logging.info(
        "tokenizer: %s; %d of the first %d captions have more than "
        "transformer.text.length=%d tokens and are cut",
        file,
        cut,
        number,
        options.length,
    )


def _fit(stage, source, config, path, pictures, tokens=None) -> None:
    shard, num_shards = sharding.batch_shard(stage.mesh)
    data = loader.shuffled(
        source,
        config.data,
        batch_size=stage.batch_size,
        seed=config.seed,
        process_index=shard,
        process_count=num_shards,
        tokens=tokens,
    )
    loop.fit(
        stage,
        data,
        config=config,
        workdir=path,
        mesh=stage.mesh,
        config_json=to_json(config),
        pictures=pictures,
    )


def write_pictures(experiment, directory: epath.Path) -> None:
    """What a finished training is looked at by; pictures that exist are kept.

    samples.png: a row for each class or caption (of ten at most), reconstructions.png:
    by depth beside the originals, code_usage.png, evaluation.json.
    """
    makers = {}
    if experiment.finished("rqvae"):
        rqvae = trained_stages.TrainedRQVAE(experiment)
        makers["reconstructions.png"] = rqvae.reconstructions
        makers["code_usage.png"] = rqvae.code_usage
    if experiment.finished("transformer"):
        makers["samples.png"] = functools.partial(trained_stages.samples, experiment)
    # Process 0 decides what is missing, before it writes anything.
    evaluation = directory / "evaluation.json"
    missing = [not (directory / name).exists() for name in makers]
    missing.append(not _is_evaluated(experiment, evaluation))
    *missing, evaluating = processes.broadcast(missing)
    makers = {k: makers[k] for k, m in zip(makers, missing, strict=True) if m}
    directory.mkdir(parents=True, exist_ok=True)
    for name, make in makers.items():
        picture = make()
        if processes.is_process_0():
            visualize.save_png(directory / name, picture)
        preemption.exit_on_stop("pictures")
    if evaluating:
        results = trained_stages.evaluate(experiment)
        if processes.is_process_0():
            atomic_files.write_json(evaluation, results)
    logging.info("pictures are in %s", directory)


def _is_evaluated(experiment, file: epath.Path) -> bool:
    """Whether a file has metrics of all finished stages."""
    finished = {s for s in ("rqvae", "transformer") if experiment.finished(s)}
    known = json.loads(file.read_text()) if file.exists() else {}
    return {name.split("/")[0] for name in known} >= finished
