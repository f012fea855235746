# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Classes and captions that preparing finds become the condition without a flag."""

import numpy as np
import pytest
from config_test import load
from etils import epath
from PIL import Image

from rq.cli import found_conditions, program, run_checks
from rq.config import ConfigError, validate
from rq.data import DataError, sources


def make(folder, classes: int, captioned: int):
    """Returns the config of a folder of 12 images, of which some have captions."""
    rng = np.random.default_rng(0)
    for k in range(12):
        path = folder / f"images/{k % classes}/{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (9, 9, 3), np.uint8)).save(path)
        if k < captioned:
            path.with_suffix(".txt").write_text(f"picture {k}\n")
    config = load("folder", "64")
    config.data.path, config.data.dir = str(folder / "images"), str(folder / "tfds")
    config.data.holdout = 2
    return config


@pytest.mark.parametrize(
    ("classes", "captioned", "condition"),
    [(3, 0, "class"), (3, 5, "class"), (3, 6, "text"), (1, 12, "text"), (1, 0, "none")],
)
def test_what_is_found_is_the_condition(
    tmp_path, capsys, classes, captioned, condition
):
    config, path = make(tmp_path, classes, captioned), epath.Path(tmp_path) / "run"
    with pytest.raises(DataError, match="rq prepare"):
        found_conditions.resolve(config, path)
    sources.prepare(config.data)
    capsys.readouterr()
    found = found_conditions.resolve(config, path)
    validate(found)
    assert found.transformer.condition == condition
    assert found.data.num_classes == (3 if condition == "class" else 0)
    assert found.transformer.condition_dropout == (0.1 if condition != "none" else 0)
    (line,) = capsys.readouterr().out.splitlines()
    assert f"transformer.condition={condition}" in line
    assert config.transformer.condition == "auto"  # as it was given

    # What was found at first stays.
    run_checks.claim(path, found)
    config.data.path = "gone"
    again = found_conditions.resolve(config, path)
    assert again.transformer == found.transformer
    assert again.data.num_classes == found.data.num_classes
    assert not capsys.readouterr().out


def test_classes_that_are_given_are_checked(tmp_path):
    config = make(tmp_path, 3, 0)
    config.data.num_classes = 4
    sources.prepare(config.data)
    config = found_conditions.resolve(config, epath.Path(tmp_path) / "run")
    with pytest.raises(DataError, match="has 3 classes, but data.num_classes is 4"):
        sources.open_split(config.data, "train")


def test_other_data_sets_have_classes_or_captions(data_dir):
    config = load("digits", "tiny")
    config.data.dir, config.transformer.condition = str(data_dir), "auto"
    config.data.num_classes = 0
    found = found_conditions.resolve(config, epath.Path("/nowhere"))
    assert (found.transformer.condition, found.data.num_classes) == ("class", 10)
    assert found_conditions.without_data(config).transformer.condition == "none"


def test_a_condition_that_is_named_is_left_alone():
    config = load("digits", "tiny")
    assert found_conditions.resolve(config, epath.Path("/nowhere")) is config
    config.transformer.condition = "labels"
    with pytest.raises(ConfigError, match="'class_text', 'auto'"):
        validate(config)


def test_prepare_says_what_will_be_used(tmp_path, capsys):
    config = make(tmp_path, 2, 12)
    flags = [f"--config.data.{name}={config.data[name]}" for name in ("path", "dir")]
    flags.append("--config.data.holdout=2")
    program.main(["prepare", "--config=folder:64", *flags])
    out = capsys.readouterr().out
    assert (
        "2 classes, captions of 100% of the examples: transformer.condition=text" in out
    )
