# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The commands: help, flags, errors of one line, overrides in a run directory."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from config_test import load

from rq import config as config_lib
from rq import main
from rq.cli import program, run_checks, run_flags
from rq.config import sampling, schema
from rq.config.declaration import RUN_COMMANDS

ROOT = pathlib.Path(__file__).parent.parent
COMMON = {"debug", "help"}
# Another value for each field that may be changed in a run directory.
OTHER = {
    "stages": ("rqvae",),
    "mesh.data": 1,
    "mesh.fsdp": 3,
    "mesh.tensor": 2,
    "data.path": "/elsewhere/images",
    "data.dir": "/elsewhere",
    "data.source_path": "/elsewhere/sources",
    "rqvae.lpips_weights": "/elsewhere/lpips.npz",
    "transformer.model.remat": "full",
    "transformer.loss.microbatches": 4,
    "sampling.guidance": (1.0, 1.0),
    "sampling.guidance_schedule": "linear",
    "sampling.temperature": (0.5,),
    "sampling.top_p": (0.9, 0.8),
    "sampling.min_p": (0.1,),
}


@pytest.fixture
def workdir(tmp_path):
    """A run directory that has its config alone."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text(config_lib.to_json(load("digits", "tiny")))
    return path


def parsed(name, *args):
    """Returns the flags of a command, after its command line."""
    return program.parse(program.module(name), args)


def own_flags(name):
    return {flag.name for flag in program.module(name).FLAGS}


def as_flag(name, value):
    if name == "stages":
        return [f"--config.{name}={one}" for one in value]
    text = ",".join(map(str, value)) if isinstance(value, tuple) else value
    return [f"--config.{name}={text}"]


def another(name):
    """A value of a field that the digits' config does not have."""
    stored = schema.fields(load("digits", "tiny"))[name]
    if name in OTHER:
        return OTHER[name]
    if choices := re.findall(r"'(\w+)'", schema.FIELDS[name].range.text):
        return next(choice for choice in choices if choice != stored)
    if isinstance(stored, bool):
        return not stored
    if isinstance(stored, tuple):
        return (*stored, schema.FIELDS[name].default[0])
    return stored + ("x" if isinstance(stored, str) else 1)


def failing(capsys, args, code, program=program):
    """Runs a command that fails with this code; its one line."""
    with pytest.raises(SystemExit) as end:
        program.main(args)
    assert end.value.code == code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


# Help.


def test_without_a_command_all_of_them_are_listed(capsys):
    program.main([])
    listed = capsys.readouterr().out
    for name, text in program.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", listed, re.M)
        module = program.module(name)
        assert module.__doc__.splitlines()[0] == text


@pytest.mark.parametrize("name", program.COMMANDS)
def test_help_begins_with_an_example_and_has_the_commands_own_flags(name, capsys):
    program.main([name, "--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"rq {name} ")
    listed = set(re.findall(r"^  --([a-z_]+)", text, re.M)) - {"config"}
    assert listed - COMMON == own_flags(name)
    assert max(map(len, text.splitlines())) <= 88


def test_flags_of_sampling_options_are_made_from_their_declaration():
    assert set(sampling.OPTIONS) <= own_flags("sample")
    assert set(sampling.OPTIONS) <= own_flags("evaluate")


# Errors.


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["smaple"], 2, "unknown command 'smaple'; did you mean sample?"),
        (["x1"], 2, "one of train, prepare,"),
        (["sample", "--tempature=2"], 2, "'tempature'. Did you mean: temperature ?"),
        (["sample", "--num_images=2"], 2, "Unknown command line flag 'num_images'"),
        (["reconstruct", "--dtype=bfloat16"], 2, "command line flag 'dtype'"),
        (["sample", "a", "b"], 2, "unexpected arguments: b"),
        (["sample", "a", "--workdir=b"], 2, "a is not --workdir=b: give one"),
        (["prepare", "a"], 2, "unexpected arguments: a"),
        (["sample", "--num_samples=0"], 2, "--num_samples=0"),
        (["sample", "--config.sampling.top_p=2"], 2, "must be within (0, 1]"),
        (["sample", "--config.rqvae.stps=2"], 2, 'did you mean "rqvae.steps"?'),
        (["sample", "--config.transformer.accumulate=2"], 2, 'is now "transformer.gr'),
        (["sample"], 1, "rq sample needs a run directory"),
        (["sample", "/nowhere"], 1, "rq train --config"),
        (["train", "/nowhere"], 1, "rq train needs --config"),
        (["train", "--config=configs/digits.py"], 1, "rq train needs a run directory"),
        (["prepare"], 1, "rq prepare needs --config"),
        (["aot"], 1, "rq aot needs --config=FILE and --topology=NAME"),
        (["convert"], 2, "rq convert needs one of lpips, resnet, inception"),
        (["convert", "vgg"], 2, "lpips|resnet|inception"),
        (["convert", "lpips", "--out=x"], 2, "rq convert lpips needs --vgg=FILE"),
        (["convert", "lpips", "--vgg=no", "--out=x", "--weights=y"], 2, "--weights"),
        (["convert", "resnet", "--weights=no.pth", "--out=x.npz"], 2, "no.pth"),
        (["evaluate", "--samples=x"], 1, "--samples needs --reference"),
        (["evaluate", "--samples=x", "--reference=y"], 1, "either --inception=FILE or"),
        (["evaluate", "x", "--captions=y"], 1, "--captions needs --samples"),
        (["evaluate", "x", "--seed=1"], 1, "--seed needs --num_samples"),
        (["evaluate", "x", "--top_p=0.5"], 1, "--top_p needs --num_samples"),
        (
            ["evaluate", "x", "--config.sampling.top_p=0.5"],
            1,
            "--config.sampling.top_p needs --num_samples",
        ),
        (["evaluate", "--samples=x", "--step=best"], 1, "--step needs a run dir"),
        (
            ["evaluate", "--samples=x", "--config.seed=1"],
            1,
            "--config.seed needs a run dir",
        ),
        (["sample", "x", "--mask=top"], 1, "--mask needs --complete"),
        (["sample", "x", "--classifier=f"], 1, "--classifier needs --keep"),
    ],
)
def test_errors_are_one_line_with_the_remedy(args, code, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert message in failing(capsys, args, code)


def test_debug_shows_the_traceback_of_an_error(capsys):
    with pytest.raises(SystemExit):
        program.main(["sample", "/nowhere", "--debug"])
    error = capsys.readouterr().err
    assert "Traceback" in error and error.splitlines()[-1].startswith("error: ")


def test_a_file_that_cannot_be_written_is_one_line(workdir, capsys):
    args = [
        "rank",
        str(workdir),
        f"--images={ROOT}",
        f"--out={workdir}/config.json/x.json",
    ]
    assert "config.json" in failing(capsys, args, 1)


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_check_of_a_folder_without_checkpoints_names_the_flag(capsys, tmp_path, name):
    (tmp_path / "empty").mkdir()
    message = failing(capsys, ["check", str(tmp_path / name)], 1)
    assert "has no checkpoints: give the run directory, --workdir=FOLDER" in message


def test_errors_of_the_program_keep_their_traceback(workdir, monkeypatch):
    def fail(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(run_flags, "open_run", fail)
    with pytest.raises(ZeroDivisionError):
        program.main(["sample", str(workdir)])


# `python -m rq.main`.


def test_modes_are_commands(capsys):
    assert set(main.COMMANDS.values()) <= set(program.COMMANDS)
    main.main(["--mode=eval", "--help"])
    assert capsys.readouterr().out.startswith("rq evaluate ")
    main.main(["--mode", "rank", "--help"])
    assert capsys.readouterr().out.startswith("rq rank ")
    assert "must be one of train, " in failing(capsys, ["--mode=x"], 2, main)
    assert "needs --config" in failing(capsys, ["--workdir=x"], 1, main)


# Overrides in a run directory.


@pytest.mark.parametrize(
    "command",
    [
        name
        if name in ("sample", "evaluate")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in RUN_COMMANDS
    ],
)
def test_a_command_takes_the_fields_that_say_so_and_refuses_all_others(
    command, workdir, monkeypatch
):
    monkeypatch.setattr(run_flags, "validate", lambda config: None)
    for name, field in schema.FIELDS.items():
        value = another(name)
        values = parsed(command, str(workdir))
        values["config"]._override_values = {name: value}
        if command in field.changed_by:
            config = run_flags.run_config(values, command)
            assert schema.fields(config)[name] == value, name
        else:
            reason = "fixed by training" if not field.changed_by else "not read by rq"
            with pytest.raises(config_lib.ConfigError, match=reason) as error:
                run_flags.run_config(values, command)
            assert str(error.value).startswith(f"{name} = ")


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (c, n)
        for c in RUN_COMMANDS
        for n in OTHER
        # A run of digits has no pairs of images.
        if c in schema.FIELDS[n].changed_by and n != "data.source_path"
    ],
)
def test_overrides_on_the_command_line_reach_the_command(command, name, workdir):
    values = parsed(command, str(workdir), *as_flag(name, OTHER[name]))
    config = run_flags.run_config(values, command)
    assert schema.fields(config)[name] == OTHER[name]


def test_the_mesh_of_training_is_not_that_of_later_commands(workdir):
    config = load("digits", "tiny")
    config.mesh.fsdp = 8
    (workdir / "config.json").write_text(config_lib.to_json(config))
    assert run_flags.run_config(parsed("sample", str(workdir)), "sample").mesh.fsdp == 1
    values = parsed("sample", str(workdir), "--mesh=fsdp=2,data=1")
    assert dict(run_flags.run_config(values, "sample").mesh) == {
        "data": 1,
        "fsdp": 2,
        "tensor": 1,
    }
    values = parsed("sample", str(workdir), "--mesh=fsdp=2", "--config.mesh.fsdp=4")
    with pytest.raises(config_lib.ConfigError, match="give one of them"):
        run_flags.run_config(values, "sample")


@pytest.mark.parametrize(
    ("flag", "field", "value"),
    [
        ("--temperature=0.5", "temperature", (0.5,)),
        ("--top_k=8,4", "top_k", (8, 4)),
        ("--guidance_schedule=cosine", "guidance_schedule", "cosine"),
        ("--seed=7", "seed", 7),
        ("--batch_size=3", "batch_size", 3),
    ],
)
def test_flags_of_options_are_overrides_of_the_config(flag, field, value, workdir):
    config = run_flags.run_config(parsed("sample", str(workdir), flag), "sample")
    assert config.sampling[field] == value
    same = f"--config.sampling.{flag[2:]}"
    values = parsed("sample", str(workdir), flag, same)
    assert run_flags.run_config(values, "sample") == config
    other = {"guidance_schedule": "linear"}.get(field, "1")
    values = parsed("sample", str(workdir), flag, f"--config.sampling.{field}={other}")
    with pytest.raises(config_lib.ConfigError, match=f"{flag.split('=')[0]} is not"):
        run_flags.run_config(values, "sample")


def test_a_whole_config_is_compared_with_that_of_the_run(workdir, monkeypatch):
    monkeypatch.chdir(ROOT)
    tiny = "--config=configs/digits.py:tiny"
    values = parsed("sample", str(workdir), tiny, "--config.sampling.top_k=3")
    assert run_flags.run_config(values, "sample").sampling.top_k == (3,)
    values = parsed("sample", str(workdir), tiny, "--config.rqvae.steps=9")
    with pytest.raises(config_lib.ConfigError, match="rqvae.steps: 4 != 9"):
        run_flags.run_config(values, "sample")


def test_what_a_run_found_at_its_start_is_not_another_config(workdir, tmp_path):
    """The file that trained it says 'auto', and leaves the shapes of codes open."""
    config, given = load("digits", "tiny"), tmp_path / "given.json"
    config.data.source, config.transformer.source_rqvae = "grey", "digits"
    config.transformer.source_shape, config.transformer.source_dim = (4, 4, 2), 7
    (workdir / "config.json").write_text(config_lib.to_json(config))
    config.transformer.condition, config.data.num_classes = "auto", 0
    config.transformer.source_shape, config.transformer.source_dim = (0,), 0
    given.write_text(config_lib.to_json(config))
    file = tmp_path / "given.py"
    file.write_text(
        "import pathlib\n"
        "from rq.config import from_json\n"
        "def get_config():\n"
        f"  return from_json(pathlib.Path({str(given)!r}).read_text())\n"
    )
    values = parsed("sample", str(workdir), f"--config={file}")
    found = run_flags.run_config(values, "sample")
    assert found.transformer.condition == "class" and found.data.num_classes == 10
    assert found.transformer.source_shape == (4, 4, 2)
    other = "--config.data.source=edges"
    values = parsed("sample", str(workdir), f"--config={file}", other)
    with pytest.raises(config_lib.ConfigError, match="data.source: 'grey' != 'edges'"):
        run_flags.run_config(values, "sample")


def test_names_that_are_no_unicode_are_printed():
    code = "from rq.cli import log_output; log_output.start(False); print('caf\\udce9')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=ROOT,
        timeout=120,
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    assert done.stdout == b"caf\\udce9\n"


def test_paths_of_a_run_do_not_depend_on_the_folder_it_is_used_from(
    workdir, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    config = load("folder")
    config.data.path, config.data.dir = "images", "~/sets"
    run_checks.claim(workdir.parent / "other", config_lib.with_absolute_paths(config))
    monkeypatch.chdir("/")
    values = parsed("encode", str(workdir.parent / "other"))
    data = run_flags.run_config(values, "encode").data
    assert data.path == str(tmp_path / "images")
    assert data.dir == str(pathlib.Path("~/sets").expanduser())


def test_the_program_is_quick_to_list_its_commands():
    """Before a command is known nothing large is imported, nor a device looked for."""
    code = (
        "import sys; from rq.cli import program; program.main([]); "
        "assert not {'jax', 'tensorflow', 'grain'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


@pytest.mark.slow
def test_overrides_of_sampling_change_samples_as_flags_do(trained, tmp_path):
    def sample(*args):
        out = tmp_path / "samples.png"
        args = ["--num_samples=8", "--classes=3", f"--out={out}", *args]
        program.main(["sample", str(trained), *args])
        with np.load(out.with_suffix(".npz")) as file:
            return file["codes"]

    as_trained = sample()
    for option in ("seed=7", "temperature=0.2", "top_k=1"):
        by_flag = sample(f"--{option}")
        by_override = sample(f"--config.sampling.{option}")
        np.testing.assert_array_equal(by_override, by_flag)
        assert (by_flag != as_trained).any(), option
