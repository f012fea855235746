# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Errors on the command line and in config files."""

import pathlib

import pytest
from absl import flags

from rq.cli import program
from rq.config import config_file, parse_with_config

ROOT = pathlib.Path(__file__).parent.parent

CONFIG = """
from rq.config import choose_variant, default

def get_config(variant=""):
    choose_variant(variant, dict.fromkeys(("", "typo", "type", "shape", "none")))
    config = default()
    if variant == "typo":
        config.rqvae.stepss = 3
    if variant == "type":
        config.rqvae.steps = "many"
    if variant == "shape":
        config.rqvae.model.code_shape = (3, 8, 4)
    return None if variant == "none" else config
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "conf.py").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)


def fails(capsys, *args):
    """Returns the one line that `rq prepare` prints for an error, with exit code 2."""
    with pytest.raises(SystemExit) as end:
        program.main(["prepare", *args])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("args", "steps", "num_codes", "rest"),
    [
        (["--config=conf.py"], 100_000, (16384,), []),
        (["--config=conf.py", "--config.rqvae.steps=5"], 5, (16384,), []),
        (["--config", "conf.py", "--config.rqvae.steps", "5", "x"], 5, (16384,), ["x"]),
        (["--config=conf.py", "--config.rqvae.model.num_codes=64"], 100_000, (64,), []),
    ],
)
def test_config_and_overrides_are_parsed(args, steps, num_codes, rest):
    values = flags.FlagValues()
    assert parse_with_config(values, ["rq", *args]) == ["rq", *rest]
    assert values.config.rqvae.steps == steps
    assert values.config.rqvae.model.num_codes == num_codes


@pytest.mark.parametrize(
    ("args", "field", "value"),
    [
        (["--config=digits"], "data.resolution", 32),
        (["--config=digits:tiny"], "data.resolution", 16),
        (["-config=digits:tiny", "--config.seed=3"], "seed", 3),
        (["--config", "digits:tiny", "--config.seed", "3"], "seed", 3),
        (["--config=imagenet:1.4B"], "transformer.model.body.layers", 42),
        ([f"--config={ROOT}/configs/digits.py:tiny"], "data.resolution", 16),
    ],
)
def test_a_name_is_a_config_that_comes_with_rq_in_any_folder(args, field, value):
    values = flags.FlagValues()
    assert parse_with_config(values, ["rq", *args]) == ["rq"]
    config = values.config
    for name in field.split("."):
        config = config[name]
    assert config == value


def test_configs_beside_the_package_and_inside_it_are_found(tmp_path, monkeypatch):
    """In a clone they are beside it, in a wheel inside."""
    assert config_file.folder() == ROOT / "configs"
    monkeypatch.setattr(config_file, "_PACKAGE", tmp_path / "rq")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/other.py").touch()
    assert config_file.names() == ["other"]
    (tmp_path / "rq/configs").mkdir(parents=True)
    (tmp_path / "rq/configs/mine.py").touch()
    assert config_file.names() == ["mine"]
    assert config_file.find("mine") == f"{tmp_path}/rq/configs/mine.py"


def test_without_a_config_file_there_is_none():
    values = flags.FlagValues()
    assert parse_with_config(values, ["rq"]) == ["rq"]
    assert values.config is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config.rqvae.stps=3"], 'config field "rqvae.stps"; did you mean'),
        (["--config.rqva.steps=3"], 'field "rqva.steps"; did you mean "rqvae.steps"?'),
        (["--config.learning_rate=3"], 'or "rqvae.optimizer.learning_rate"?'),
        (["--config.rqvae.zzz=3"], 'unknown config field "rqvae.zzz"; known there'),
        (["--noconfig.rqvae.model.shared"], 'mean "rqvae.model.shared_codebook"?'),
        (["--config.rqvae=3"], '"rqvae" is a section; set one of its fields: '),
        (["--config.rqvae.steps=1.5"], 'rqvae.steps = "1.5": must be an integer'),
        (["--config.rqvae.optimizer.b1=x"], 'b1 = "x": must be a finite number'),
        (["--config.rqvae.model.restart_codes=x"], '= "x": must be true or false'),
        (["--config.rqvae.model.num_codes=a,b"], "('a,b',): must be a tuple of int"),
        (["--config.rqvae.model.num_codes=1,(2"], '"1,(2": must be a tuple of int'),
        (["--config.rqvae.steps=0"], "rqvae.steps = 0: must be positive"),
        (["--config.rqvae.steps"], "Missing value for flag --config.rqvae.steps"),
        (["--stepss=3"], "Unknown command line flag 'stepss'"),
        (["--config=nowhere.py"], 'config file "nowhere.py" does not exist'),
        (["--config=conf"], 'unknown config "conf"; rq has cc3m, cifar10,'),
        (["--config=digit:x"], 'config "digit"; did you mean "digits"? rq has cc3m'),
        (["--config=digits:big"], "digits.py, line 32: unknown config variant"),
        (["--config=configs/digits.py"], "not exist; --config=digits is the one that"),
        (["--config=conf.py:big"], "conf.py, line 5: unknown config variant 'big'"),
        (["--config=conf.py:typo"], 'conf.py, line 8: Key "stepss" does not exist'),
        (["--config=conf.py:type"], "conf.py, line 10: Could not override"),
        (["--config=conf.py:shape"], "3 rows do not divide the feature map's height 8"),
        (["--config=conf.py:none"], "returned NoneType, no ConfigDict"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(args, message, capsys):
    if not args[0].startswith("--config="):
        args = ["--config=conf.py", *args]
    assert message in fails(capsys, *args)


def test_an_override_before_the_config_is_refused(capsys):
    error = fails(capsys, "--config.seed=1", "--config=conf.py")
    assert error.startswith("error: Found --config.seed=1 in argv before")
