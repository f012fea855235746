# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests run directories: full checks, unusual paths, a full disk, the lock."""

import errno
import json
import subprocess
import sys

import jax.numpy as jnp
import pytest
from toy import Toy, fit

from rq import config as config_lib
from rq.cli import program
from rq.config import ConfigError
from rq.experiment import Experiment
from rq.models.codebook import Codebook
from rq.parallel import run_lock
from rq.training import checkpoint, checkpoint_files
from rq.training.train_state import TrainState


def trained_toy(folder, steps=4):
    fit(Toy(steps), folder, checkpoint_every=2)
    return folder / Toy.name


def test_every_byte_of_a_checkpoint_is_checked_on_demand(tmp_path, monkeypatch):
    """Includes files that are too large for the checksums checked at each start."""
    monkeypatch.setattr(checkpoint_files, "SMALL", 0)
    folder = trained_toy(tmp_path)
    paths = checkpoint_files.checkpoints_of(tmp_path)
    assert paths == [folder / "2", folder / "4"]
    assert [checkpoint_files.find_changes(path) for path in paths] == [[], []]
    names = json.loads((folder / "4" / checkpoint_files.CHECKSUMS).read_text())
    assert len(names) > 5
    for name in names:
        file, content = folder / "4" / name, (folder / "4" / name).read_bytes()
        if not content:
            continue
        middle = len(content) // 2
        flipped = bytes([content[middle] ^ 4])
        file.write_bytes(content[:middle] + flipped + content[middle + 1 :])
        assert checkpoint_files.find_damage(folder / "4") is None  # the size is right
        (found,) = checkpoint_files.find_changes(folder / "4")
        assert str(file) in found and "other contents" in found
        file.write_bytes(content)
    file.unlink()
    assert "is missing" in checkpoint_files.find_changes(folder / "4")[0]
    (folder / "2" / checkpoint_files.CHECKSUMS).unlink()
    assert checkpoint_files.find_changes(folder / "2") is None


def test_rq_check_names_the_damaged_file(tmp_path, capsys):
    folder = trained_toy(tmp_path)
    program.main(["check", str(tmp_path)])
    printed = capsys.readouterr().out
    assert printed.count("all files are as they were written") == 2
    files = [path for path in (folder / "4" / "model").rglob("*") if path.is_file()]
    file = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        program.main(["check", str(tmp_path)])
    printed = capsys.readouterr().out
    assert ended.value.code == 1 and f"damaged: {file} has other" in printed
    with pytest.raises(SystemExit) as ended:
        program.main(["check", str(folder / "2")])
    assert ended.value.code == 1 and "no checkpoints" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a[b", "a]b", "[ab]", "a\\b"])
def test_paths_that_orbax_cannot_read_are_refused_before_compute(tmp_path, name):
    with pytest.raises(checkpoint.CheckpointError, match="cannot have .* in its path"):
        fit(Toy(2), tmp_path / name)
    assert not (tmp_path / name).exists()
    with pytest.raises(checkpoint.CheckpointError, match="another --workdir"):
        checkpoint.load_model(tmp_path / name / "rqvae", "rqvae")


@pytest.mark.parametrize("name", ["a b", "ä*?", "{a},b", "a%20b#c"])
def test_other_unusual_paths_work(tmp_path, name):
    trained_toy(tmp_path / name, steps=2)
    state = fit(Toy(4), tmp_path / name, checkpoint_every=2)
    assert int(state.step) == 4


def test_a_full_disk_is_one_error_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    """Errors of Orbax and the operating system, at the second checkpoint."""
    write = checkpoint_files.write_listing

    def fail(path):
        if path.name.startswith("4"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path)

    monkeypatch.setattr(checkpoint_files, "write_listing", fail)
    with pytest.raises(checkpoint.CheckpointError) as failed:
        fit(Toy(8), tmp_path, checkpoint_every=2)
    message = str(failed.value)
    assert "no space left" in message and "rqvae: step 2" in message
    assert "\n" not in message and len(message) < 300 + len(str(tmp_path))
    monkeypatch.undo()
    assert int(fit(Toy(8), tmp_path, checkpoint_every=2).step) == 8


def test_a_run_directory_has_one_training_at_a_time(tmp_path):
    hold = (
        "import sys, time; from rq.parallel import run_lock\n"
        "with run_lock.lock(sys.argv[1]):\n    print('held', flush=True)\n"
        "    time.sleep(100)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match=f"in use by process {holder.pid} on"):
        with run_lock.lock(tmp_path):
            pass
    holder.kill()  # leaves nothing that must be removed by hand
    holder.wait()
    with run_lock.lock(tmp_path):
        pass
    with run_lock.lock(tmp_path):
        pass


def test_a_transformer_of_another_codebook_is_refused(tmp_path, monkeypatch):
    def state(_, stage):
        embedding = jnp.ones((3, 2)) * (1 if stage == "rqvae" else 2)
        codebook = {"state": Codebook(embedding, jnp.ones(3), embedding)}
        blank = dict.fromkeys(("step", "params", "opt_state", "ema", "key"), {})
        return TrainState(codebook=codebook, **blank)

    monkeypatch.setattr(Experiment, "_state", state)
    experiment = Experiment(tmp_path, config=config_lib.default())
    with pytest.raises(checkpoint.CheckpointError, match="another codebook"):
        _ = experiment.transformer_state


@pytest.mark.parametrize(
    "trained, chosen",
    [(("rqvae",), "rqvae"), (("rqvae", "transformer"), "transformer")],
)
def test_step_chooses_among_those_of_the_last_stage_trained(tmp_path, trained, chosen):
    """It does not depend on the stages of the first training."""
    for stage in trained:
        for step in (2, 4):
            path = tmp_path / stage / str(step)
            path.mkdir(parents=True)
            (path / "_CHECKPOINT_METADATA").touch()
    config = config_lib.default()
    config.stages = ("rqvae",)
    experiment = Experiment(tmp_path, step=2, config=config)
    for stage in trained:
        assert experiment.step_of(stage) == (2 if stage == chosen else 4)
