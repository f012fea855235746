# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Commands on saved folders, half precision, and the models that come with rq."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import rq
from rq import loaded_models
from rq.cli import program
from rq.config import ConfigError
from rq.convert import saved_folder

NAMES = list(loaded_models.shipped())


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    """The tiny run of the tests, saved."""
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    rq.load(trained).save(folder)
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Commands write into the current directory."""
    monkeypatch.chdir(tmp_path)


def command(*args):
    program.main(list(map(str, args)))


def codes_of(path):
    with np.load(path) as found:
        return found["codes"]


@pytest.mark.slow
def test_commands_give_the_same_on_a_saved_folder_as_on_its_run(saved, trained, capsys):
    image = pathlib.Path("noise.png")
    noise = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    Image.fromarray(noise).save(image)
    found = {}
    for name, place in (("saved", saved), ("run", trained)):
        command("sample", place, "--num_samples=3", f"--out={name}.npz")
        command("reconstruct", place, f"--images={image}", f"--out={name}.png")
        command("rank", place, f"--images={image}", f"--out={name}.json")
        command("evaluate", place, f"--out={name}_measured.json")
        found[name] = [
            codes_of(f"{name}.npz").tolist(),
            pathlib.Path(f"{name}.png").read_bytes(),
            json.loads(pathlib.Path(f"{name}.json").read_text()),
            json.loads(pathlib.Path(f"{name}_measured.json").read_text()),
        ]
    *ours, measured = found["saved"]
    *theirs, expected = found["run"]
    assert ours == theirs
    assert measured == pytest.approx(expected, rel=1e-6)
    assert sorted(path.name for path in saved.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_what_commands_write_of_a_saved_folder_is_in_outputs(saved, tmp_path, capsys):
    command("sample", saved, "--num_samples=1")
    assert (tmp_path / "outputs/tiny/samples/generated.png").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["encode"], "rq encode needs a run directory: rq convert authors --archive="),
        (["sample", "--step=3"], "is no run directory, it has no steps"),
        (["evaluate", "--num_samples=9"], "has no feature network of its own"),
    ],
)
def test_what_a_saved_folder_cannot_do_is_refused(saved, capsys, args, message):
    name, *flags = args
    with pytest.raises(SystemExit):
        command(name, saved, *flags)
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert message in line


# Half precision


def test_half_precision_halves_the_parameters_and_keeps_the_codebook(saved, tmp_path):
    model = rq.load(saved)
    model.save("half", licence="MIT", half=True)
    whole, half = (
        safetensors.numpy.load_file(path / saved_folder.WEIGHTS)
        for path in (saved, pathlib.Path("half"))
    )
    for name, array in whole.items():
        kept = ".codebooks." in name
        assert half[name].dtype == (array.dtype if kept else np.float16), name
        np.testing.assert_array_equal(half[name], array.astype(half[name].dtype))
    assert (
        "float16 (the codebook in float32)"
        in pathlib.Path("half/README.md").read_text()
    )
    assert np.mean(rq.load("half").encode(_noise()) == model.encode(_noise())) > 0.9


def test_numbers_beyond_half_precision_are_refused(saved):
    model = rq.load(saved)
    variables = model._models.rqvae_variables
    variables["params"] = jax.tree.map(lambda x: x + 1e5, variables["params"])
    with pytest.raises(ConfigError, match="too large for float16"):
        model.save("half", half=True)
    assert not pathlib.Path("half").exists()


def _noise():
    return np.random.default_rng(0).integers(0, 256, (8, 16, 16, 1), np.uint8)


# Names


@pytest.fixture
def shipped(saved, tmp_path, monkeypatch):
    """A package that comes with the tiny model alone."""
    folder = tmp_path / "package"
    shutil.copytree(saved, folder / "tiny")
    (folder / "notes").mkdir()  # no model
    monkeypatch.setattr(loaded_models, "SHIPPED", folder)


@pytest.mark.slow
def test_a_name_means_a_shipped_model_unless_there_is_a_run_of_that_name(
    shipped, saved, trained, capsys
):
    assert list(loaded_models.shipped()) == ["tiny"]
    assert rq.load("tiny").info() == rq.load(saved).info()
    pathlib.Path("tiny").mkdir()  # a folder of something else
    command("sample", "tiny", "--num_samples=2", "--out=a.npz")
    np.testing.assert_array_equal(
        rq.load("tiny").sample(num_samples=2), np.load("a.npz")["arr_0"]
    )
    (pathlib.Path("tiny") / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="missing config field"):
        rq.load("tiny")


def test_an_unknown_name_lists_those_that_there_are(shipped):
    with pytest.raises(FileNotFoundError, match="come with rq, tiny"):
        rq.load("dogits")


# The models that come with rq


@pytest.fixture(scope="module", params=NAMES)
def ready(request):
    """One of them: its name and the model."""
    return request.param, rq.load(request.param)


def _conditions(model):
    """Returns a class and a text, as far as the model has them."""
    condition = model.config.transformer.condition
    asked = {"classes": 3} if "class" in condition else {}
    return asked | ({"texts": "a red heart"} if "text" in condition else {})


def test_two_models_come_with_rq():
    assert NAMES == ["digits", "emoji"]


def test_a_shipped_model_has_a_card_metrics_and_a_few_megabytes(ready):
    name, model = ready
    info, folder = model.info(), loaded_models.shipped()[name]
    assert info["licence"] == "Apache-2.0" and min(info["steps"].values()) > 1000
    assert info["metrics"]["transformer/bits_per_image"] > 0
    assert info["metrics"]["rqvae/psnr/depth_4"] > 24
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20e6
    assert "rq.load" in (folder / "README.md").read_text()
    assert "/tmp" not in (folder / "config.json").read_text()


@pytest.mark.slow
def test_a_shipped_model_survives_the_authors_layout_bit_for_bit(ready, capsys):
    name, model = ready
    command("convert", "export", f"--workdir={name}", "--to=authors", "--out=torch")
    places = ["--archive=torch/stage1", "--archive=torch/stage2"]
    command("convert", "authors", *places, "--out=back")
    command("convert", "export", "--workdir=back", "--to=safetensors", "--out=again")
    options = dict(num_samples=2, seed=1, top_p=0.9) | _conditions(model)
    images = model.sample(**options)
    codes = model.encode(images)
    for place in ("back", "again"):
        other = rq.load(place)
        np.testing.assert_array_equal(other.sample(**options), images)
        np.testing.assert_array_equal(other.encode(images), codes)
