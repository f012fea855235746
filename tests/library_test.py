# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of the library: `rq.load` and the methods of `rq.Model`."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from authors_test import small_config, weights, write_pair, write_tokenizer
from PIL import Image

import rq
from rq.config import ConfigError, with_portable_paths
from rq.convert import saved_folder
from rq.data import DataError, given_images, text
from rq.experiment import Experiment
from rq.models.build import rqvae_model, transformer_model
from rq.sampling import SamplingConfig, conditions
from rq.saved_experiment import open_experiment

INFO = {"steps": {"rqvae": 3, "transformer": 5}, "metrics": {}, "licence": "MIT"}


@pytest.fixture(scope="module")
def model(trained):
    """The tiny run of the tests, loaded."""
    return rq.load(trained)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """It, saved."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save(folder, licence="CC0-1.0")
    return folder


@pytest.fixture(scope="module")
def images(model):
    """Noise, uint8, of the size that the model takes."""
    side = model.config.data.resolution
    return np.random.default_rng(0).integers(0, 256, (3, side, side, 1), np.uint8)


def equal(a, b):
    np.testing.assert_array_equal(a, b)


# Loading and saving


def test_a_saved_model_gives_the_same_pictures_codes_and_likelihoods(
    model, saved, images
):
    again = rq.load(str(saved))
    options = dict(classes=[3, 7], num_samples=4, seed=2, top_p=0.9)
    equal(again.sample(**options), model.sample(**options))
    equal(again.encode(images), model.encode(images))
    equal(again.reconstruct(images), model.reconstruct(images))
    equal(again.log_likelihood(images, [1]), model.log_likelihood(images, [1]))
    files = model.compress(images, classes=1)
    equal(again.decompress(files), model.reconstruct(images))


def test_samples_are_those_of_the_run(model, trained):
    experiment = Experiment(trained)
    asked = conditions.parse(experiment.config, classes=(3, 7))
    _, cond = asked.at(asked.spread(4))
    options = SamplingConfig(**experiment.config.sampling).replace(seed=2, top_p=0.9)
    expected = experiment.sampler.sample(cond, 4, options, dtype=np.uint8).images
    found = model.sample(classes=[3, 7], num_samples=4, seed=2, top_p=0.9)
    assert found.dtype == np.uint8 and found.shape == (4, 16, 16, 1)
    equal(found, expected)


def test_a_saved_folder_has_a_card_and_no_paths_of_this_machine(model, saved, trained):
    assert sorted(path.name for path in saved.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert saved_folder.opened(saved).config == with_portable_paths(model.config)
    assert str(trained.parent) not in (saved / "config.json").read_text()
    card = (saved / "README.md").read_text()
    for part in ("license: cc0-1.0", "16 x 16, grey", "218,773", "psnr", "rq.load"):
        assert part in card, part


def test_info_survives_saving(model, saved):
    ours, theirs = model.info(), rq.load(saved).info()
    assert theirs.pop("licence") == "CC0-1.0" and ours.pop("licence") == "not stated"
    assert ours == theirs == json.loads(json.dumps(ours))
    assert ours["code_shape"] == [4, 4, 2] and ours["parameters"]["rqvae"] == 218773
    assert ours["steps"]["transformer"] == 4 and ours["metrics"]


BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "orbax", "matplotlib"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
import rq
assert "jax" not in sys.modules
model = rq.load(sys.argv[1])
print(model.sample(classes=3, num_samples=2).shape)
"""


def test_a_saved_model_needs_neither_tensorflow_nor_orbax_nor_matplotlib(saved):
    found = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(saved)],
        cwd=pathlib.Path(rq.__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.stdout.split("\n")[0] == "(2, 16, 16, 1)", found.stderr[-2000:]


@pytest.mark.parametrize(
    "dtype", ["bfloat16", pytest.param("int8", marks=pytest.mark.slow)]
)
def test_precisions_are_those_of_the_run(dtype, saved, trained):
    loaded, run = rq.load(saved, dtype=dtype), rq.load(trained, dtype=dtype)
    a, b = (x._models.transformer_variables["params"] for x in (loaded, run))
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert loaded.info()["dtype"] == dtype
    with pytest.raises(ConfigError, match="without dtype"):
        loaded.save(saved.parent / dtype)


def test_a_folder_of_the_authors_checkpoints_is_loaded(tmp_path):
    folder = write_pair(small_config("class"), tmp_path / "pair")
    model = rq.load(folder)
    codes = np.zeros((1, 4, 4, 2), int)
    pictures = model.decode(codes)
    assert pictures.shape == (1, 8, 8, 1)
    model.save(tmp_path / "saved")
    again = rq.load(tmp_path / "saved")
    equal(again.decode(codes), pictures)
    assert again.config.transformer == model.config.transformer


def changed(config, **fields):
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in fields.items()}
    )
    return config


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(
            dict(
                rqvae__model__shared_codebook=False,
                rqvae__model__num_codes=(8, 6),
                transformer__model__shared_classifier=False,
            ),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            dict(rqvae__model__cosine=True, rqvae__model__shared_codebook=False),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            dict(
                rqvae__model__fsq_levels=(3, 3),
                rqvae__model__num_codes=(9,),
                rqvae__model__embed_dim=2,
                rqvae__model__code_shape=(8, 8, 2),
                rqvae__model__shared_codebook=False,
            ),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            dict(
                transformer__model__body__norm="rms",
                transformer__model__head__norm="rms",
            ),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            dict(transformer__model__body__qk_norm=True), marks=pytest.mark.slow
        ),
        dict(
            transformer__model__shared_classifier=False,
            transformer__model__body_from_codebook=False,
            transformer__model__head_from_codebook=False,
            transformer__model__shared_token_embedding=False,
        ),
    ],
    ids=["own codebooks", "cosine", "grid", "rms", "qk_norm", "tables"],
)
def test_every_variant_of_the_networks_survives_saving(fields, tmp_path):
    config = changed(small_config("class"), **fields)
    variables = {
        "rqvae": weights(rqvae_model(config)),
        "transformer": weights(transformer_model(config)),
    }
    saved_folder.write(tmp_path, config, variables, INFO, None)
    saved = saved_folder.opened(tmp_path)
    assert saved.config == with_portable_paths(config) and saved.info == INFO
    found = saved.variables("transformer")["params"]
    jax.tree.map(
        np.testing.assert_array_equal, found, variables["transformer"]["params"]
    )
    image = np.zeros((1, 8, 8, 1), np.float32)
    forward = jax.jit(lambda v: rqvae_model(config).apply(v, image)[:2])
    ours, theirs = forward(variables["rqvae"]), forward(saved.variables("rqvae"))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_model_with_text_keeps_its_tokenizer(tmp_path):
    folder = write_pair(small_config("text"), tmp_path / "pair")
    with pytest.raises(ConfigError, match="needs its tokenizer"):
        rq.load(folder)
    tokenizer = write_tokenizer(folder / text.FILE)
    rq.load(folder).save(tmp_path / "saved")
    again = rq.load(tmp_path / "saved")
    equal(again._models.tokenizer("a green star"), tokenizer("a green star"))
    with pytest.raises(ConfigError, match="conditioned on text"):
        again.sample()
    assert again.sample(texts="a green star").shape == (1, 8, 8, 1)


def test_an_rqvae_alone_is_saved_and_loaded(tmp_path):
    folder = write_pair(small_config(), tmp_path / "pair")
    shutil.rmtree(folder / "transformer")
    rq.load(folder).save(tmp_path / "saved")
    model = rq.load(tmp_path / "saved")
    assert model.encode(np.zeros((8, 8))).shape == (1, 4, 4, 2)
    for method in (model.sample, lambda: model.log_likelihood(np.zeros((8, 8)))):
        with pytest.raises(ConfigError, match="has no RQ-Transformer"):
            method()


# Methods


def test_decoding_at_every_depth(model, images):
    codes = model.encode(images)
    assert codes.dtype == np.int32 and codes.shape == (3, 4, 4, 2)
    equal(model.decode(codes), model.reconstruct(images))
    equal(model.decode(codes, depth=2), model.decode(codes))
    first = model.decode(codes[0], depth=1)
    assert first.shape == (1, 16, 16, 1) and (first != model.decode(codes[0])).any()


def test_completion_keeps_the_codes_outside_the_mask(model, images):
    top = np.zeros((32, 32), bool)
    top[:16] = True
    found = [
        model.complete(images[0], mask, classes=[3], num_samples=2, seed=1)
        for mask in ("top", top, Image.fromarray(top))
    ]
    assert found[0].shape == (2, 16, 16, 1)
    equal(found[0], found[1])
    equal(found[0], found[2])
    assert model.complete(images[0], keep_depth=1).shape == (10, 16, 16, 1)


def test_likelihoods_are_by_image_and_condition(model, images):
    found = model.log_likelihood(images)
    assert found.shape == (3, 10) and (found < 0).all()
    np.testing.assert_allclose(
        model.log_likelihood(images[1], [4, 2]), found[1:2, [4, 2]], rtol=1e-5
    )


# Images


def pictures(folder):
    """Yields colour images of 40 x 30, and what they are in Pillow."""
    pixels = np.random.default_rng(1).integers(0, 256, (30, 40, 3), np.uint8)
    image = Image.fromarray(pixels)
    image.save(folder / "image.png")
    clear = image.copy()
    clear.putalpha(0)
    return pixels, image, clear


def test_files_arrays_and_images_of_pillow_are_taken_alike(tmp_path):
    pixels, image, clear = pictures(tmp_path)
    expected = given_images.read(pixels, 3, 16)
    assert expected.shape == (1, 16, 16, 3) and expected.dtype == np.uint8
    alpha = np.dstack([pixels, pixels[..., 0]])
    path = tmp_path / "image.png"
    for given in (path, str(path), [path], image, clear, pixels[None], alpha):
        equal(given_images.read(given, 3, 16), expected)
    for given in (pixels / 255, pixels.astype(np.float32), pixels.astype(np.uint16)):
        wide = given * 256 if given.dtype == np.uint16 else given
        equal(given_images.read(wide, 3, 16), expected)
    assert given_images.read([path, image, pixels], 1, 8).shape == (3, 8, 8, 1)


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_every_mode_are_taken(mode, channels):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(grey)
    image = image.convert("P").convert(mode) if mode == "PA" else image.convert(mode)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    found = given_images.read(image, channels, 16)
    assert found.shape == (1, 16, 16, channels)
    expected = np.where(grey > 127, 255, 0) if mode == "1" else grey
    limit = 256 if mode == "1" else 1  # Pillow dithers
    assert np.abs(found[0].astype(int) - expected[..., None]).max() <= limit


def test_the_orientation_in_a_file_is_applied(tmp_path):
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    exif = image.getexif()
    exif[0x0112] = 3  # turned by 180 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    path = tmp_path / "turned.png"
    from_file = given_images.read(path, 1, 16)
    equal(from_file, given_images.read(Image.open(path), 1, 16))
    equal(from_file[0, ..., 0], np.asarray(image)[::-1, ::-1])


@pytest.mark.parametrize(
    "given, message",
    [
        ([], "no images were given"),
        (np.zeros((2, 3, 4, 5, 6)), r"not \[H, W\]"),
        (np.zeros((3, 16, 16)), r"images have shape \(3, 16, 16\)"),
        (np.zeros((8, 8, 2)), "shape"),
        (np.zeros((1, 8, 8, 7)), "image 0: 7 channels"),
        (np.full((8, 8), np.nan), "image 0: pixels out of range"),
        (np.full((8, 8), -0.5), "image 0: pixels out of range"),
        ([np.zeros((8, 8)), np.zeros((0, 8))], "image 1: an image without pixels"),
        ("missing.png", "missing.png: there is no such file"),
        (np.array([["a"]]), "not of numbers"),
        (None, "shape"),
    ],
)
def test_what_is_no_image_is_one_clear_line(given, message):
    with pytest.raises(DataError, match=message) as info:
        given_images.read(given, 3, 8)
    assert "\n" not in str(info.value)


# Errors


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.sample(classes=[10]), "the model has 0..9"),
        (lambda m: m.sample(classes=[0.5]), "whole numbers"),
        (lambda m: m.sample(texts="a text"), "whose condition is 'class'"),
        (lambda m: m.sample(num_samples=0), "num_samples 0"),
        (lambda m: m.sample(top_q=1), "no option of sampling is named top_q"),
        (lambda m: m.sample(top_p=2.0), "top_p"),
        (lambda m: m.sample(guidance=3.0), "guidance"),
        (lambda m: m.decode(np.zeros((4, 4))), "codes of shape"),
        (lambda m: m.decode(np.zeros((4, 4, 2))), "float64"),
        (lambda m: m.decode(np.full((4, 4, 2), 16)), "the model has 16 there"),
        (lambda m: m.decode(np.zeros((4, 4, 2), int), depth=3), "not within 1..2"),
        (lambda m: m.complete(np.zeros((2, 8, 8, 1))), "one image, not 2"),
        (lambda m: m.complete(np.zeros((8, 8)), "middle"), "neither an image"),
        (lambda m: m.complete(np.zeros((8, 8)), np.zeros((8, 8))), "nothing to"),
        (lambda m: m.complete(np.zeros((8, 8)), np.zeros((8, 8, 3))), "the mask has"),
        (lambda m: m.save(pathlib.Path(__file__).parent), "choose a new folder"),
    ],
)
def test_what_a_model_does_not_have_is_one_clear_line(model, call, message):
    with pytest.raises(ConfigError, match=message) as info:
        call(model)
    assert "\n" not in str(info.value)


def damage(folder, change):
    content = json.loads((folder / "config.json").read_text())
    change(content)
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(format=2), "this version of rq reads 1"),
        (lambda c: c.pop("info"), "no config.json of a saved model"),
        (lambda c: c["info"]["steps"].pop("rqvae"), "has no RQ-VAE"),
        (lambda c: c["config"].update(new=1), "new"),
        (
            lambda c: c["config"]["rqvae"]["model"].update(ch=64),
            "wrong shapes|expected",
        ),
    ],
    ids=["format", "info", "rqvae", "field", "network"],
)
def test_a_damaged_config_is_one_clear_line(change, message, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")
    damage(tmp_path / "model", change)
    with pytest.raises(ValueError, match=message) as info:
        rq.load(tmp_path / "model").encode(np.zeros((8, 8)))
    assert "\n" not in str(info.value)


def test_masks_of_yes_and_no_are_alike(model, images):
    redo = np.zeros((16, 16), bool)
    redo[8:] = True
    expected = model.complete(images[0], redo, classes=3)
    for mask in (redo.astype(int), redo.astype(np.float32), redo * np.uint8(255)):
        equal(model.complete(images[0], mask, classes=3), expected)
    with pytest.raises(ConfigError, match="the mask: pixels out of range"):
        model.complete(images[0], redo * -1.0, classes=3)


def test_damaged_weights_are_one_clear_line(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")
    weights = tmp_path / "model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="cannot read"):  # a user's error
        rq.load(tmp_path / "model").encode(np.zeros((8, 8)))
    with pytest.raises(ConfigError, match="cannot read"):  # of the commands
        open_experiment(tmp_path / "model").stored("rqvae")


def test_a_folder_without_models_is_refused(saved, tmp_path):
    (tmp_path / "file").touch()
    for path, message in (
        ("missing", "does not exist"),
        ("file", "is a file, not a folder"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            rq.load(tmp_path / path)
    with pytest.raises(ConfigError, match="no checkpoint in it"):
        rq.load(tmp_path)
    with pytest.raises(ConfigError, match="it has no steps"):
        rq.load(saved, step=3)
    with pytest.raises(ConfigError, match="float16"):
        rq.load(saved, dtype="float16")
    with pytest.raises(AttributeError, match="lode"):
        _ = rq.lode
