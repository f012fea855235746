# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Mistakes on the command line and in config files, in a process of their own."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PROGRAM = """
from absl import app
from ml_collections import config_flags
from rq.config import flags_parser

CONFIG = config_flags.DEFINE_config_file("config")

def main(argv):
    config = CONFIG.value
    print(config and (config.rqvae.steps, config.rqvae.model.num_codes), argv[1:])

app.run(main, flags_parser=flags_parser)
"""
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


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command_line")
    (folder / "program.py").write_text(PROGRAM)
    (folder / "conf.py").write_text(CONFIG)

    def run(*args):
        return subprocess.run(
            [sys.executable, "program.py", *args],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.mark.parametrize(
    ("args", "printed"),
    [
        (["--config=conf.py"], "(100000, (16384,)) []"),
        (["--config=conf.py", "--config.rqvae.steps=5"], "(5, (16384,)) []"),
        (
            ["--config", "conf.py", "--config.rqvae.steps", "5", "x"],
            "(5, (16384,)) ['x']",
        ),
        (
            ["--config=conf.py", "--config.rqvae.model.num_codes=64"],
            "(100000, (64,)) []",
        ),
        ([], "None []"),
    ],
)
def test_command_line_reaches_the_program(program, args, printed):
    result = program(*args)
    assert (result.returncode, result.stderr) == (0, "")
    assert printed in result.stdout


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
        (["--config=conf.py:big"], "conf.py, line 5: unknown config variant 'big'"),
        (["--config=conf.py:typo"], 'conf.py, line 8: Key "stepss" does not exist'),
        (["--config=conf.py:type"], "conf.py, line 10: Could not override"),
        (["--config=conf.py:shape"], "3 rows do not divide the feature map's side 8"),
        (["--config=conf.py:none"], "returned NoneType, no ConfigDict"),
    ],
)
def test_command_line_mistakes_are_one_line_and_status_2(program, args, message):
    if not args[0].startswith("--config="):
        args = ["--config=conf.py", *args]
    result = program(*args)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 2
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in result.stderr


def test_an_override_before_the_config_is_refused(program):
    result = program("--config.seed=1", "--config=conf.py")
    assert result.returncode == 2
    assert result.stderr.startswith("error: Found --config.seed=1 in argv before")
