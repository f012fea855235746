# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Images that are not square, through every part of the program."""

import io
import json

import jax
import numpy as np
import program
import pytest
from augment_test import coordinates
from authors_test import weights
from config_test import load
from PIL import Image

import rq
from rq import visualize
from rq.aot import programs
from rq.config import (
    ConfigError,
    from_json,
    image_shape,
    parse_with_config,
    to_json,
    validate,
)
from rq.convert import released_config, saved_folder
from rq.data import DataError, augment
from rq.demo import markup, server, uploads
from rq.demo.actions import Actions
from rq.demo.batches import Batches
from rq.demo.previews import Previews
from rq.evaluation import extractors
from rq.evaluation.trained_stages import TrainedRQVAE
from rq.experiment import Experiment
from rq.models.build import feature_classifier, rqvae_model, transformer_model
from rq.models.networks import resnet
from rq.parallel import sharding
from rq.sampling import inpainting
from rq.training import kept_weights

SHAPE, CODES = (16, 24), (4, 6, 2)
CHANGES = {  # from the smallest config
    "data.resolution": SHAPE,
    "features.objective": "rotation",
    "rqvae.adversarial.ndf": 8,
    "rqvae.adversarial.layers": 1,
    "rqvae.model.code_shape": CODES,
}


def wide(**changes):
    """The config of the run, changed."""
    config = load("digits", "tiny")
    config.update_from_flattened_dict(CHANGES | changes)
    return config


# Other parts of stage 1, which the run leaves out because they compile for a minute.
ALL_LOSSES = {
    "stages": ("features", "rqvae", "codes", "transformer"),
    "rqvae.loss.perceptual": "features",
    "rqvae.adversarial.weight": 0.1,
    "rqvae.model.attn_resolutions": (8,),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
    """A run directory of 16 x 24 pixels in 4 x 6 x 2 codes."""
    folder = tmp_path_factory.mktemp("wide") / "run"
    flags = [
        f"--config.{name}={value}".replace(" ", "") for name, value in CHANGES.items()
    ]
    program.run(program.TINY, *flags, f"--workdir={folder}", data_dir=data_dir)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A saved model with random weights, of that shape."""
    config = wide()
    models = {"rqvae": rqvae_model(config), "transformer": transformer_model(config)}
    variables = {stage: weights(module) for stage, module in models.items()}
    info = {"steps": {"rqvae": 3, "transformer": 5}, "metrics": {}, "licence": "MIT"}
    folder = tmp_path_factory.mktemp("wide") / "model"
    folder.mkdir()
    saved_folder.write(folder, config, variables, info, None)
    return rq.load(folder)


@pytest.mark.slow
def test_training_stores_codes_and_pictures_of_that_shape(run):
    config = from_json((run / "config.json").read_text())
    assert config.data.resolution == SHAPE
    assert to_json(config) == to_json(rq.load(run).config)
    example = Experiment(run).code_source("validation")[0]
    assert example["codes"].shape == CODES
    assert json.loads((run / "samples/evaluation.json").read_text())
    picture = Image.open(run / "samples/samples.png")
    assert picture.width > 1.3 * picture.height  # ten by ten


@pytest.mark.slow
def test_the_library_takes_any_images_and_gives_that_shape(model):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, shape, np.uint8) for shape in ((9, 70), (80, 20, 3))]
    codes = model.encode(images)
    assert codes.shape == (2, *CODES)
    assert model.decode(codes).shape == model.reconstruct(images).shape
    assert model.decode(codes, depth=1).shape == (2, *SHAPE, 1)
    assert model.log_likelihood(images, [3]).shape == (2, 1)
    assert model.sample(classes=[1], num_samples=3).shape == (3, *SHAPE, 1)
    assert model.info()["resolution"] == SHAPE
    assert json.loads(json.dumps(model.info()))["code_shape"] == list(CODES)


@pytest.mark.slow
def test_a_saved_model_is_the_same(model, tmp_path):
    model.save(tmp_path / "saved")
    again = rq.load(tmp_path / "saved")
    assert "16 x 24" in (tmp_path / "saved/README.md").read_text()
    options = dict(classes=[2, 5], num_samples=4, seed=3)
    np.testing.assert_array_equal(again.sample(**options), model.sample(**options))


@pytest.mark.parametrize("mask", ["right", "bottom", "image"])
def test_completion_keeps_the_other_codes(model, mask):
    image = np.random.default_rng(1).integers(0, 256, SHAPE, np.uint8)
    redo = np.zeros(CODES[:2], bool)
    if mask == "image":  # one row of positions, in pixels of another size
        redo[2] = True
        mask = np.kron(redo, np.ones((3, 5), bool))
    else:
        redo[(slice(None), slice(3, None)) if mask == "right" else slice(2, None)] = 1
    asked = dict(classes=[4], num_samples=8, seed=1)
    found = model.complete(image, mask, **asked)
    assert found.shape == (8, *SHAPE, 1)
    if not isinstance(mask, str):
        mask = np.where(mask, 255, 0)
    given = inpainting.make_given(model.encode(image)[0], mask)
    np.testing.assert_array_equal(~given.keep.any(-1), redo)


@pytest.mark.slow
def test_reconstructions_and_distances_are_measured(run, tmp_path):
    rqvae = TrainedRQVAE(Experiment(run))
    config = rqvae._experiment.config
    classifier = feature_classifier(config)
    images = np.zeros((1, *SHAPE, 1), np.float32)
    params = classifier.init(jax.random.key(0), images)["params"]
    mesh = rqvae._experiment.mesh
    found = rqvae.metrics(extractor=extractors.own(classifier, params, config, mesh))
    assert found["ssim/depth_2"] <= 1 and found["rFID (digits features)/depth_2"] > 0
    Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (50, 30, 3), np.uint8)
    ).save(tmp_path / "tall.png")
    picture = tmp_path / "picture.png"
    visualize.save_png(picture, rqvae.reconstructions(1, tmp_path))
    assert Image.open(picture).width > 300


def test_the_page_shows_that_shape(model):
    previews = Previews(model.models, 8)
    batches = Batches(model.models, previews)
    actions = Actions(model, previews, batches, max_images=4)
    assert "--rq-ratio: 24 / 16;" in markup.style_sheet(actions.rqvae.image_shape)
    image = uploads.read_image(_png((40, 30)), 1, model.config.data.resolution)
    assert image.shape == (*SHAPE, 1)
    html, shown = actions.reconstruct(np.repeat(image, 3, axis=-1))
    assert shown.codes.shape == (1, *CODES) and f"{16 * 24 * 8:,} bits" in html
    assert len(actions.region("left")) == 4 * 6
    server._compile(actions)  # draws a sample
    batches.close()


def _png(size):
    file = io.BytesIO()
    Image.new("L", size).save(file, "PNG")
    return file.getvalue()


@pytest.mark.slow
def test_flops_and_shapes_are_known_without_running():
    mesh, flops = sharding.make_mesh(), {"features": [], "rqvae": []}
    for size, rows in ((SHAPE, (4, 6, 2)), ((24, 16), (6, 4, 2)), (16, (4, 4, 2))):
        shapes = {"data.resolution": size, "rqvae.model.code_shape": rows}
        levels = {"rqvae.model.attn_resolutions": (12,) if size == (24, 16) else (8,)}
        config = wide(**ALL_LOSSES | shapes | levels)
        validate(config)
        for stage, found in flops.items():
            made = programs.make_stage(config, stage, mesh)
            shape, _ = programs.example(config, made)["image"]
            assert shape == image_shape(config.data)
            traced = programs.train_step(config, stage, mesh)
            found.append(programs.model_flops(config, stage, mesh, traced))
    wide_one, tall, square = flops["rqvae"]
    assert wide_one == tall and 1.4 < wide_one / square < 1.7
    # Quarter turns are those of the square in the middle.
    assert len(set(flops["features"])) == 1


def test_a_model_of_squares_starts_one_of_another_shape():
    square = wide(**{"data.resolution": 16, "rqvae.model.code_shape": (4, 4, 2)})
    plan = kept_weights.plan("rqvae", square, wide(), "DIR")
    assert len(plan.text) == 1 and "and the codebook" in plan.text[0]
    plan = kept_weights.plan("transformer", square, wide(), "DIR")
    assert [line.split(":")[0] for line in plan.text[1:]] == ["body_positions"]


# Bad input, in one line.


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"data.resolution": (16,)}, "a side, or height and width"),
        ({"data.resolution": (16, 24, 3)}, "a side, or height and width"),
        (
            {"data.resolution": (16, 24, 3), "data.source": "lowres:2"},
            "a side, or height and width",
        ),
        ({"data.resolution": (16, 16)}, "square images have one number: 16"),
        ({"data.resolution": (16, -24)}, "positive"),
        ({"data.resolution": (16, 24.0)}, "an integer or a tuple of int"),
        ({"data.resolution": "wide"}, "an integer or a tuple of int"),
        ({"data.resolution": (16, 23)}, r"\(16, 23\): is not divisible by 2"),
        ({"rqvae.model.code_shape": (6, 4, 2)}, "6 rows do not divide .* height 8"),
        (
            {"rqvae.model.code_shape": (4, 8, 2)},
            "8 columns do not .* width 12 = 24 / 2",
        ),
        ({"rqvae.model.attn_resolutions": (24,)}, r"height 24; they are \(16, 8\)"),
    ],
)
def test_shapes_that_cannot_be_are_refused(changes, problem):
    with pytest.raises(ConfigError, match=problem):
        validate(wide(**changes))


@pytest.mark.parametrize("text", ["64,96", "(64, 96)", "(64,96)"])
def test_the_command_line_takes_a_pair(text):
    from absl import flags

    values = flags.FlagValues()
    changes = ["--config.rqvae.model.code_shape=2,3,4"]
    args = ["rq", "--config=configs/emoji.py", f"--config.data.resolution={text}"]
    parse_with_config(values, [*args, *changes])
    assert values.config.data.resolution == (64, 96)
    assert from_json(to_json(values.config)).data.resolution == (64, 96)


def test_images_of_the_built_in_sets_are_not_distorted(data_dir):
    config = wide(**{"data.dir": str(data_dir), "data.augment": "none"})
    with pytest.raises(DataError, match=r"\(16, 24\), but one is 32 x 32: set .*crop"):
        augment.transforms(config.data)[0](coordinates(32, 32), SHAPE, None)


def test_the_authors_format_has_squares_only():
    config = wide()
    with pytest.raises(ValueError, match="square images, not 16 x 24.*rq.Model.save"):
        released_config.to_yaml(config, "rqvae")


# Crops


@pytest.mark.parametrize("name", ["center", "crop_flip", "resized_crop_flip", "dalle"])
@pytest.mark.parametrize(
    "shape", [(40, 90), (90, 40), (20, 33), (16, 24), (3, 700), (700, 3)]
)
@pytest.mark.parametrize("size", [(16, 24), (48, 16)])
def test_crops_have_the_size_and_keep_the_images_ratio(name, shape, size):
    image = (coordinates(*shape) * 0.36).astype(np.uint8)
    for seed in range(3):
        found = augment.AUGMENTATIONS[name](image, size, np.random.default_rng(seed))
        assert found.shape == (*size, 3) and found.dtype == np.uint8


@pytest.mark.parametrize("shape", [(80, 60), (40, 100)])
def test_pixels_are_resized_alike_in_both_directions(shape):
    image = coordinates(*shape).astype(np.uint8)
    for name in ("center", "resized_crop_flip", "dalle"):
        found = augment.AUGMENTATIONS[name](image, (10, 20), np.random.default_rng(0))
        steps = [
            np.abs(np.diff(found[..., axis].astype(float), axis=axis)).mean()
            for axis in (0, 1)
        ]
        np.testing.assert_allclose(*steps, rtol=0.12)


def test_the_middle_of_an_image_is_cropped_to_cover():
    image = coordinates(100, 60)
    found = augment.center(image, (30, 60), None)
    np.testing.assert_array_equal(found, image[35:65])


def test_resnets_take_the_middle_of_wide_images():
    image = np.zeros((1, 128, 256, 3), np.float32)
    image[:, :, 64:192] = 1
    found = jax.jit(resnet.preprocess)(image)
    assert found.shape == (1, 224, 224, 3)
    np.testing.assert_allclose(found[0, 100, 5:-5, 0], found[0, 100, 100, 0], rtol=1e-5)
