# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Checks before training computes anything; the config that a run stores."""

import os
import shutil

import numpy as np
import pytest
from config_test import load
from etils import epath
from program import TINY, run

from rq.cli import run_checks, train
from rq.config import STAGES, ConfigError, from_json, to_json
from rq.data import DataError, sources
from rq.parallel import run_lock, sharding


@pytest.fixture
def workdir(tmp_path):
    """A run directory that has its config alone."""
    path = epath.Path(tmp_path) / "run"
    path.mkdir()
    (path / "config.json").write_text(to_json(load("digits", "tiny")))
    return path


def stored(workdir):
    return from_json((workdir / "config.json").read_text())


# The config that is stored.


def test_training_again_stores_what_may_change(workdir):
    config = load("digits", "tiny")
    config.sampling.temperature, config.data.dir = (0.5,), "/elsewhere"
    config.stages = ("features",)
    run_checks.claim(workdir, config)
    assert stored(workdir).sampling.temperature == (0.5,)
    assert stored(workdir).data.dir == "/elsewhere"
    assert stored(workdir).stages == STAGES  # all that were ever run
    assert config.stages == ("features",)
    before = (workdir / "config.json").stat()
    run_checks.claim(workdir, config)
    assert (workdir / "config.json").stat() == before
    config.rqvae.steps = 9
    with pytest.raises(ConfigError, match="rqvae.steps: 4 != 9"):
        run_checks.claim(workdir, config)


def test_a_directory_that_cannot_be_written_is_found_out_first(
    workdir, tmp_path, monkeypatch
):
    config = load("digits", "tiny")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):  # one line, see rq.cli.exits
        run_checks.claim(epath.Path(tmp_path) / "file" / "run", config)
    with pytest.raises(ConfigError, match="cannot be written .*another --workdir"):
        train.run_stages(config, epath.Path(tmp_path) / "file" / "run")
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(ConfigError, match="cannot be written: use another --workdir"):
        run_checks.claim(workdir, config)


def test_a_directory_in_use_keeps_its_config(workdir):
    config = load("digits", "tiny")
    config.sampling.temperature = (0.5,)
    before = (workdir / "config.json").read_text()
    with run_lock.lock(workdir):
        with pytest.raises(ConfigError, match="in use by process"):
            train.run_stages(config, workdir)
    assert (workdir / "config.json").read_text() == before


# Stages.


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (("codes",), "'codes' needs 'rqvae'"),
        (("transformer",), "'transformer' needs 'rqvae'"),
        (("features", "codes", "transformer"), "'codes' needs 'rqvae'"),
        (("rqvae", "transformer"), "'transformer' needs 'codes'"),
    ],
)
def test_a_stage_that_lacks_an_earlier_one_is_refused(stages, message, workdir):
    config = load("digits", "tiny")
    config.stages = stages
    with pytest.raises(ConfigError, match=message):
        run_checks.check_order(config, workdir)


@pytest.mark.parametrize(
    "stages", [("features",), ("rqvae",), ("rqvae", "codes"), STAGES]
)
def test_stages_that_have_what_they_need_pass(stages, workdir):
    config = load("digits", "tiny")
    config.stages = stages
    run_checks.check_order(config, workdir)
    if stages == ("rqvae",):
        config.stages, config.transformer.online = ("rqvae", "transformer"), True
        run_checks.check_order(config, workdir)


@pytest.mark.parametrize("stages", [("codes",), ("codes", "transformer")])
def test_later_stages_run_alone_in_a_run_that_has_the_earlier(stages, trained):
    config = load("digits", "tiny")
    config.stages = stages
    run_checks.check_order(config, epath.Path(trained))


# Data.


EXAMPLE = {"image": np.zeros((32, 32, 1), np.uint8)}


def small(monkeypatch, number):
    opened = []

    def open_split(data, split, paired):
        opened.append(split)
        return [EXAMPLE] * (number if split == data.train_split else 1)

    monkeypatch.setattr(sources, "open_split", open_split)
    return opened


@pytest.mark.parametrize(
    ("stages", "changes", "number", "message"),
    [
        (STAGES, {}, 8, None),
        (STAGES, {}, 7, "features.batch_size = 8: the training split has 7 examples"),
        (STAGES[1:], {}, 7, "rqvae.batch_size = 8"),
        (STAGES[1:], {"transformer.batch_size": 16}, 8, "transformer.batch_size = 16"),
        (STAGES[1:], {"transformer.batch_size": 16, "codes.variants": 2}, 8, None),
        (
            STAGES[1:],
            {
                "transformer.batch_size": 16,
                "transformer.online": True,
                "codes.variants": 2,
            },
            8,
            "transformer.batch_size = 16: the training split has 8 examples",
        ),
        (("transformer",), {"transformer.batch_size": 16}, 8, None),  # stored codes
    ],
)
def test_every_stage_to_be_run_has_a_batch(
    stages, changes, number, message, workdir, monkeypatch
):
    small(monkeypatch, number)
    config = load("digits", "tiny")
    config.stages = stages
    config.update_from_flattened_dict(changes)
    if message is None:
        run_checks.check_data(config, workdir)
        return
    with pytest.raises(DataError, match=message):
        run_checks.check_data(config, workdir)


def test_both_splits_are_opened_before_anything_is_computed(workdir, monkeypatch):
    opened = small(monkeypatch, 100)
    config = load("digits", "tiny")
    run_checks.check_run(config, workdir, sharding.make_mesh())
    assert set(opened) == {"train", "validation"}
    config.data.eval_split, missing = "test", DataError("no such split")

    def open_split(data, split, paired):
        if split == "test":
            raise missing
        return [EXAMPLE] * 100

    monkeypatch.setattr(sources, "open_split", open_split)
    with pytest.raises(DataError, match="no such split"):
        run_checks.check_data(config, workdir)


@pytest.mark.parametrize("augment", ["none", "flip"])
@pytest.mark.parametrize("wrong", ["train", "validation"])
def test_the_first_image_of_each_split_has_the_size_that_is_needed(
    augment, wrong, workdir, monkeypatch
):
    """If nothing is to crop or resize it."""
    config = load("digits", "tiny")
    config.data.update(augment=augment, resolution=32)
    sides = {"train": 32, "validation": 32}

    def open_split(data, split, paired):
        side = sides[split]
        return [{"image": np.zeros((side, side, 1), np.uint8)}] * 100

    monkeypatch.setattr(sources, "open_split", open_split)
    run_checks.check_data(config, workdir)
    sides[wrong] = 28
    with pytest.raises(DataError, match="one is 28 x 28: set data.augment='center'"):
        run_checks.check_data(config, workdir)


# The whole program.


@pytest.mark.slow
def test_a_moved_data_set_needs_no_editing(trained, data_dir, tmp_path):
    """Nor do other settings that may change: the run takes them from the flags."""
    workdir, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(trained, workdir)
    shutil.rmtree(workdir / "codes")
    shutil.copytree(data_dir, moved)
    nowhere = tmp_path / "nowhere"
    config = stored(epath.Path(workdir))
    config.data.dir, config.data.name = str(nowhere), "digits"
    (workdir / "config.json").write_text(to_json(config))
    batch = "--config.codes.batch_size=50"
    output = run("--mode=encode", str(workdir), f"--config.data.dir={moved}", batch)
    assert (workdir / "codes/train/manifest.json").exists(), output
    assert not nowhere.exists()
    assert stored(epath.Path(workdir)) == config  # other commands leave it
    run(TINY, f"--workdir={workdir}", f"--config.data.dir={moved}", batch)
    assert stored(epath.Path(workdir)).data.dir == str(moved)
    assert stored(epath.Path(workdir)).codes.batch_size == 50
    assert not nowhere.exists()


def test_a_set_that_is_not_where_the_run_has_it_says_the_flag(tmp_path):
    data = load("folder").data
    data.path, data.dir = str(tmp_path / "images"), str(tmp_path)
    with pytest.raises(DataError, match="--config.data.dir=.*--config.data.path="):
        sources.open_split(data, "train")
    data.name = "mnist"
    with pytest.raises(DataError, match="--config.data.dir="):
        sources.open_split(data, "train")
