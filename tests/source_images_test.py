# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Images as conditions: source images, their codes, the model's prefix, sampling."""

import csv
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image
from stages_test import BATCH, make_stage, one_device, run, text_config, tiny

import rq
from rq.aot import programs
from rq.cli import program as cli
from rq.cli import sample, source_rqvae, train
from rq.config import ConfigError, SamplingConfig, from_json, validate
from rq.data import source_images, stored_codes
from rq.data.augment import AUGMENTATIONS
from rq.evaluation import pairs
from rq.experiment import Experiment
from rq.models.transformer import Codebooks, abstract_codebook, code_vectors
from rq.parallel import sharding
from rq.sampling import conditions, program
from rq.sampling.order import make_order
from rq.sampling.sampler import Sampler
from rq.sampling.trained_models import source_image
from rq.training import checkpoint, given_model


def config_of(condition="none", source="grey", dropout=0.1):
    """Returns a tiny config with source images."""
    config = tiny() if "text" not in condition else text_config(condition)
    config.data.source = source
    config.transformer.condition = condition
    config.transformer.condition_dropout = dropout
    validate(config)
    return config


# Source images


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("scale", [1, 2])
def test_both_images_of_a_pair_are_cropped_and_flipped_alike(name, scale):
    """The pixels of both images are their own places."""
    side = 16 if name in ("none", "flip") else 40
    places = np.mgrid[:side, :side].astype(np.uint8)
    image = np.stack([*places, places[0]], axis=-1)
    small = image[::scale, ::scale]
    data = tiny().data
    data.source, data.channels, data.augment = "pairs", 3, name
    for seed in range(8):
        found = source_images.transformed(
            {"image": image, "source": small},
            AUGMENTATIONS[name],
            data,
            np.random.default_rng(seed),
            paired=True,
        )
        apart = np.abs(found["image"].astype(int) - found["source"])
        assert apart.max() <= (0 if scale == 1 else 2)


def test_an_image_is_the_same_with_its_source_as_without():
    data = tiny().data
    data.source, data.augment = "mask", "crop_flip"
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 1), np.uint8)
    both, alone = (
        source_images.transformed(
            {"image": image},
            AUGMENTATIONS["crop_flip"],
            data,
            np.random.default_rng(3),
            paired=paired,
        )
        for paired in (True, False)
    )
    np.testing.assert_array_equal(both["image"], alone["image"])
    assert "source" not in alone and both["source"].shape == both["image"].shape


@pytest.mark.parametrize("kind", ["grey", "lowres:4", "edges", "mask"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_source_image_is_made_of_the_image(kind, channels):
    data = tiny().data
    data.source, data.channels = kind, channels
    image = np.zeros((16, 16, channels), np.uint8)
    image[4:12, 4:12, 0] = 200
    made = source_images.make(data, image, np.random.default_rng(0))
    assert made.shape == image.shape and made.dtype == np.uint8
    if kind in ("grey", "edges"):
        np.testing.assert_array_equal(made, np.repeat(made[..., :1], channels, -1))
    if kind == "edges":
        assert set(np.unique(made)) == {0, 255}
    if kind == "mask":
        missing = (made == source_images.MASKED).all(axis=-1)
        np.testing.assert_array_equal(made[~missing], image[~missing])
        rows, columns = missing.any(axis=1).sum(), missing.any(axis=0).sum()
        assert rows * columns == missing.sum() and 4 <= min(rows, columns)
    if kind == "lowres:4":  # from the small image as from the large one
        assert source_images.given_size(data) == (4, 4)
        small = image.reshape(4, 4, 4, 4, channels).mean((1, 3)).round()
        again = source_images.make(data, small.astype(np.uint8))
        assert np.abs(made.astype(int) - again).max() <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.source": "lowres:5"}, "does not divide data.resolution 16"),
        ({"data.source": "sketch"}, "'none', 'pairs', 'grey', 'lowres:N'"),
        ({"data.swap_pairs": True}, "only with data.source = 'pairs'"),
        (
            {"data.source": "pairs", "data.name": "folder", "data.path": "x"},
            "needs --config.data.source_path",
        ),
        ({"data.source_path": "x"}, "only with data.source = 'pairs'"),
        ({"transformer.source_rqvae": "x"}, "only with a data.source"),
        ({"data.palette": ("red",)}, "colours, such as"),
        (
            {"data.source": "grey", "transformer.condition_dropout": 0.4},
            "must be at most 1/3",
        ),
    ],
)
def test_wrong_settings_are_one_clear_line(changes, message):
    config = tiny()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=message):
        validate(config)


def test_stored_codes_have_those_of_the_source(tmp_path):
    rng, number = np.random.default_rng(0), 5
    shapes = {"codes": (2, 2, 3), "features": (2, 2, 4), "source_codes": (3, 1, 2)}
    batch = {
        "codes": rng.integers(0, 9, (number, 2, 2, 3)),
        "features": rng.normal(size=(number, 2, 2, 4)).astype(np.float32),
        "source_codes": rng.integers(0, 9, (number, 3, 1, 2)),
        "label": np.arange(number),
        "captions": [("a", "b")] * number,
    }
    about = dict(num_examples=number, shapes=shapes, fingerprint={"rqvae": "x"})
    writer = stored_codes.CodeWriter(tmp_path, **about)
    writer.start()
    writer.write(0, [batch])
    source = stored_codes.CodeSource(tmp_path, {"rqvae": "x"})
    for i in range(number):
        example, captions = source.read(i)
        assert captions == ("a", "b") and example["label"] == i
        for name in shapes:
            np.testing.assert_array_equal(example[name], batch[name][i])


# The condition


def test_the_codes_of_the_source_come_first_in_the_condition():
    codes = np.arange(2 * 4 * 4 * 2).reshape(2, 4, 4, 2) % 16
    batch = {"source_codes": codes, "label": np.array([3, 0])}
    flat = codes.reshape(2, -1)
    made = conditions.make(config_of(), batch)
    np.testing.assert_array_equal(made, np.hstack([flat, [[0], [0]]]))
    made = conditions.make(config_of("class"), batch)
    np.testing.assert_array_equal(made, np.hstack([flat, [[3], [0]]]))
    np.testing.assert_array_equal(conditions.null(config_of("class")), [*[-1] * 32, 10])
    assert conditions.null(config_of(dropout=0.0)) is None
    with pytest.raises(ValueError, match="source_codes"):
        conditions.make(config_of(), {"label": np.array([3, 0])})


def test_of_three_conditions_each_is_left_out_or_stands_alone_as_often_as_all_are():
    config = config_of("class_text")
    lengths = conditions.part_lengths(config)
    assert lengths == (32, 1, 5)
    cond, none = jnp.ones((4000, 38), jnp.int32), np.full(38, -1)
    left = conditions.leave_out_parts(cond, none, 0.2, jax.random.key(0), lengths)
    parts = np.asarray(left)[:, [0, 31, 32, 33, 37]] < 0
    rows = {(1, 1, 1, 1, 1): 0.2, (0, 0, 0, 0, 0): 0.2}
    for part in ((1, 1, 0, 0, 0), (0, 0, 1, 0, 0), (0, 0, 0, 1, 1)):
        rows |= {part: 0.1, tuple(1 - x for x in part): 0.1}
    found = {row: np.mean((parts == row).all(axis=1)) for row in rows}
    assert found == pytest.approx(rows, abs=0.03)


def sources(number):
    codes = np.arange(number * 32).reshape(number, 4, 4, 2) % 16
    names = tuple(f"{i}.png" for i in range(number))
    return conditions.Sources(codes, names, np.zeros((number, 16, 16, 1), np.uint8))


def test_source_images_go_with_classes_or_without():
    config, given = config_of("class"), sources(2)
    asked = conditions.parse(config, sources=given)
    np.testing.assert_array_equal(asked.cond[:, :32], given.codes.reshape(2, -1))
    np.testing.assert_array_equal(asked.cond[:, 32], [10, 10])  # no class
    assert asked.names == [{"source": "0.png"}, {"source": "1.png"}]
    np.testing.assert_array_equal(asked.labels, [0, 1])
    asked = conditions.parse(config, classes=(7,), sources=given)
    np.testing.assert_array_equal(asked.cond[:, 32], [7, 7])
    np.testing.assert_array_equal(asked.labels, [7, 7])
    asked = conditions.parse(config, classes=(7, 3))  # without source images
    assert (asked.cond[:, :32] == -1).all() and asked.cond.shape == (2, 33)
    asked = conditions.parse(config_of(), sources=given)
    np.testing.assert_array_equal(asked.cond[:, 32], [0, 0])


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (tiny, {"sources": sources(1)}, "data.source is 'none'"),
        (config_of, {}, "give --source=IMAGE"),
        (
            lambda: config_of("class"),
            {"sources": sources(2), "classes": (1, 2, 3)},
            "2 source images for 3",
        ),
        (
            lambda: config_of("class", dropout=0.0),
            {"classes": (1,)},
            "give --source=IMAGE",
        ),
    ],
)
def test_conditions_that_do_not_fit_are_refused(config, options, message):
    with pytest.raises(ConfigError, match=message):
        conditions.parse(config(), **options)


# The model


@functools.cache
def trained_step(condition="none"):
    """Returns a stage after one step, its state and its batch."""
    stage, batch = make_stage("transformer", config_of(condition), one_device())
    if "text" in condition:
        batch["text"] = np.ones((BATCH, 5), np.int32)
    state = sharding.unbox(jax.jit(stage.init)(jax.random.key(0)))
    state, metrics = jax.jit(stage.train_step)(state, batch)
    assert np.isfinite(metrics["loss"])
    assert ("loss/text" in metrics) == ("text" in condition)
    return stage, state, batch


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["none", "class", "class_text"])
def test_decoding_with_a_source_is_teacher_forcing(condition):
    stage, state, batch = trained_step(condition)
    cond = conditions.make(stage.config, batch)
    cond = cond.at[0].set(stage.null_cond)
    codebook = code_vectors(state.codebook)
    expected = stage.model.apply(
        {"params": state.params}, batch["codes"], cond, codebook
    )
    _, found = program.sample(
        stage.model,
        state.params,
        codebook,
        cond,
        jax.random.key(0),
        codes=batch["codes"],
        keep=True,
        return_logits=True,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_in_any_order_a_source_is_read_as_in_training_and_in_groups():
    config = config_of()
    config.transformer.order = "random"
    stage, batch = make_stage("transformer", config, one_device())
    state = sharding.unbox(jax.jit(stage.init)(jax.random.key(0)))
    codebook = code_vectors(state.codebook)
    cond = conditions.make(config, batch)
    order = np.stack([np.random.default_rng(i).permutation(16) for i in range(BATCH)])
    params = {"params": state.params}
    given = (params, batch["codes"], cond, codebook)
    expected = stage.model.apply(*given, order=order)
    _, found = program.sample(
        stage.model,
        state.params,
        codebook,
        cond,
        jax.random.key(0),
        codes=batch["codes"],
        keep=True,
        order=order,
        return_logits=True,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    variables = {"params": state.params, "codebook": state.codebook}
    sampler = Sampler(
        stage.model,
        variables,
        None,
        None,
        mesh=one_device(),
        null_cond=stage.null_cond,
    )
    options = SamplingConfig(seed=5, parallel_steps=16)  # of one position each
    found = next(sampler.batches(np.asarray(cond), BATCH, options)).codes
    one_by_one = program.sample(
        stage.model,
        state.params,
        codebook,
        cond,
        jax.random.key(5),
        order=make_order(np.zeros((4, 4, 2), bool), spread=True),
    )
    np.testing.assert_array_equal(found, one_by_one)


def test_the_source_reaches_every_position_and_left_out_ones_are_alike():
    stage, state, batch = trained_step()
    codebook = code_vectors(state.codebook)
    cond = np.array(conditions.make(stage.config, batch))

    def logits(cond):
        return stage.model.apply(
            {"params": state.params}, batch["codes"], cond, codebook
        )

    changed = cond.copy()
    changed[:, :2] = (changed[:, :2] + 5) % 16  # the first position of the source
    moved = np.abs(logits(changed) - logits(cond)).max(axis=(-1, -2))
    assert (moved > 1e-6).all()
    absent = np.tile(stage.null_cond, (BATCH, 1))
    np.testing.assert_array_equal(logits(absent), logits(None))
    changed = absent.copy()
    changed[:, 0] = 3  # a position without all of its codes is left out
    np.testing.assert_array_equal(logits(changed), logits(absent))


def test_models_without_source_have_no_weights_of_it_and_no_other_inputs():
    plain, _ = make_stage("transformer", tiny(), one_device())
    stage, state, _ = trained_step("class")
    own = {"source_input", "source_positions", "source_absent"}
    assert own <= state.params.keys()
    init = jax.eval_shape(plain.init, jax.random.key(0))
    assert not own & init.params.keys()
    assert plain.model.prefix_length == 1 and stage.model.prefix_length == 17


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_sample_of_a_source_is_a_function_of_seed_and_index(guidance):
    stage, state, batch = trained_step()
    variables = {"params": state.params, "codebook": state.codebook}
    cond = np.asarray(conditions.make(stage.config, batch))
    found = []
    for mesh, size in ((one_device(), 3), (sharding.make_mesh(), 8)):
        sampler = Sampler(
            stage.model, variables, None, None, mesh=mesh, null_cond=stage.null_cond
        )
        options = SamplingConfig(seed=5, guidance=guidance, batch_size=size)
        batches = sampler.batches(cond, BATCH, options)
        found.append(np.concatenate([codes for _, codes in batches]))
    np.testing.assert_array_equal(*found)


@pytest.mark.slow
def test_eight_devices_compute_what_one_does():
    config = config_of("class")
    config.transformer.optimizer.eps = 1.0
    config.transformer.optimizer.learning_rate = 0.01
    (expected, _), (found, _) = (
        run("transformer", mesh, config, steps=3)
        for mesh in (one_device(), sharding.make_mesh(2, 2, 2))
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        found.params,
        expected.params,
    )


def test_a_codebook_of_its_own_has_other_shapes():
    stage, _, batch = trained_step()
    model = stage.model.clone(source_shape=(2, 3, 1), source_dim=7)
    codebook = jax.tree.map(lambda x: jnp.zeros(x.shape), abstract_codebook(model))
    assert isinstance(codebook, Codebooks) and codebook.source.shape == (1, 7)
    cond = np.zeros((BATCH, 7), np.int32)
    logits, variables = model.init_with_output(
        jax.random.key(0), np.zeros_like(batch["codes"]), cond, codebook
    )
    assert logits.shape == (*batch["codes"].shape, 16)
    params = sharding.unbox(variables["params"])
    assert params["source_input"]["kernel"].shape == (7, model.width)
    assert params["source_positions"].shape == (6, model.width)


# A whole run, whose source images have an RQ-VAE of their own


def test_the_rqvae_of_a_start_that_failed_is_taken_anew(trained, tmp_path):
    config = config_of("class", source="lowres:2")
    config.transformer.source_rqvae = str(trained)
    source_rqvae.resolve(config, epath.Path(tmp_path))
    stale = tmp_path / "source/stale"
    stale.touch()
    found = source_rqvae.resolve(config, epath.Path(tmp_path))
    assert not stale.exists() and found.transformer.source_shape == (4, 4, 2)
    (tmp_path / "config.json").touch()  # the run has begun
    stale.touch()
    source_rqvae.resolve(config, epath.Path(tmp_path))
    assert stale.exists()
    given, kept = rq.load(trained), rq.load(tmp_path / "source")
    images = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 1), np.uint8)
    np.testing.assert_array_equal(kept.encode(images), given.encode(images))


def test_files_that_are_no_rqvae_are_not_removed(trained, tmp_path):
    config = config_of("class", source="lowres:2")
    config.transformer.source_rqvae = str(trained)
    photo = tmp_path / "source/photo.png"
    photo.parent.mkdir()
    photo.touch()
    with pytest.raises(ConfigError, match="other files: choose another --workdir"):
        source_rqvae.resolve(config, epath.Path(tmp_path))
    assert photo.exists()


@pytest.mark.parametrize("online", [pytest.param(True, marks=pytest.mark.slow), False])
def test_programs_of_source_images_with_an_rqvae_of_their_own_trace(trained, online):
    config = config_of("class", source="lowres:2")
    config.transformer.source_rqvae = str(trained)
    config.transformer.online, config.sampling.batch_size = online, 16
    given = given_model.of_source_images(config)
    config = source_rqvae.with_shapes(config, given.config)
    mesh = sharding.make_mesh(2, 2, 2)
    state, metrics = programs.train_step(config, "transformer", mesh).out_info
    assert metrics["loss"].shape == () and "source" in state.codebook
    (codes,) = jax.tree.leaves(programs.sampler(config, mesh).out_info)
    assert codes.shape == (16, 4, 4, 2)


def test_a_mask_says_what_is_missing_of_a_source_image():
    data = config_of("class", source="mask").data
    image = np.full((16, 32, 1), 200, np.uint8)
    mask = np.zeros((16, 32), np.uint8)
    mask[:, 8:12] = 255  # at the left of what the model sees
    found = source_image(data, image, mask)
    np.testing.assert_array_equal(found[:, :4], source_images.MASKED)
    np.testing.assert_array_equal(found[:, 4:], 200)
    with pytest.raises(ConfigError, match="nothing is missing"):
        source_image(data, image, np.zeros((16, 16), np.uint8))


@pytest.fixture(scope="module")
def paired(tmp_path_factory, trained, data_dir):
    """A run on the trained RQ-VAE, in which the same one encodes source images."""
    config = config_of("class", source="lowres:2")
    config.data.dir = str(data_dir)
    config.stages = ("codes", "transformer")
    config.init_from, config.init_stages = str(trained), ("rqvae",)
    config.transformer.source_rqvae = str(trained)
    folder = tmp_path_factory.mktemp("paired") / "run"
    train.run_stages(config, epath.Path(folder))
    return folder


@pytest.mark.slow
def test_a_run_keeps_the_rqvae_of_its_sources(paired, tmp_path):
    config = from_json((paired / "config.json").read_text())
    assert config.transformer.source_shape == (4, 4, 2)
    model = rq.load(paired)
    images = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 1), np.uint8)
    made = model.sample(source=images, num_samples=4, seed=3)
    assert made.shape == (4, 16, 16, 1)
    model.save(tmp_path / "saved")
    again = rq.load(tmp_path / "saved").sample(source=images, num_samples=4, seed=3)
    np.testing.assert_array_equal(again, made)
    assert (tmp_path / "saved/source/model.safetensors").exists()
    with pytest.raises(ConfigError, match="give --source=IMAGE"):
        model.sample()
    with pytest.raises(ConfigError, match="a mask of a model whose data.source"):
        model.sample(source=images, mask="left")
    assert model.sample(classes=[3], num_samples=1).shape == (1, 16, 16, 1)
    likely = model.log_likelihood(made, source=images)
    assert likely.shape == (4, 2)


@pytest.mark.slow
def test_online_the_step_is_that_on_stored_codes(paired):
    """Compares encoding both images in the step with codes stored before."""
    losses = []
    for online in (False, True):
        config = from_json((paired / "config.json").read_text())
        config.transformer.online = online
        stage = Experiment(paired, one_device(), config=config).transformer_stage(1)
        state = sharding.unbox(jax.jit(stage.init)(jax.random.key(0)))
        losses.append(stage.evaluate(state)["cross_entropy"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.slow
def test_codes_of_another_source_are_not_used(paired):
    config = from_json((paired / "config.json").read_text())
    experiment = Experiment(paired, one_device(), config=config)
    assert set(experiment.fingerprint) == {"rqvae", "source", "source_rqvae"}
    config.data.source = "grey"
    changed = Experiment(paired, one_device(), config=config)
    with pytest.raises(rq.data.DataError, match="codes of the RQ-VAE"):
        changed.code_source("train")


@pytest.mark.slow
def test_a_resumed_run_is_that_without_a_break(paired, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(paired, again)
    shutil.rmtree(again / "transformer/4")
    config = from_json((again / "config.json").read_text())
    train.run_stages(config, epath.Path(again))
    one, two = (
        checkpoint.load_model(run / "transformer", "transformer")[0]
        for run in (paired, again)
    )
    assert "source" in one["codebook"]
    jax.tree.map(np.testing.assert_array_equal, two, one)


@pytest.mark.slow
def test_samples_are_measured_beside_the_true_images(paired):
    config = from_json((paired / "config.json").read_text())
    found = pairs.evaluate(Experiment(paired, one_device(), config=config), 5)
    assert found["pairs"] == 5
    for name in ("samples", "source", "rqvae"):
        assert {f"{name}/psnr", f"{name}/ssim"} <= found.keys()
    assert found["source/psnr"] > found["rqvae/psnr"]  # which has learned nothing
    config.data.palette = ("#000000", "#ffffff")
    experiment = Experiment(paired, one_device(), config=config)
    found = pairs.evaluate(experiment, 5)
    assert found.keys() == {
        "pairs",
        *(f"{x}/{y}" for x in ("samples", "rqvae") for y in ("mIoU", "pixel accuracy")),
    }
    assert pairs.picture(experiment, 0, 2, 2).dtype == np.uint8


@pytest.mark.slow
def test_the_command_samples_a_folder_of_sources(paired, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / f"in/{name}.png")
    flags = [str(paired), f"--source={tmp_path}/in", f"--out={tmp_path}/out.npz"]
    sample.run(cli.parse(sample, [*flags, "--num_samples=4"]))
    with np.load(tmp_path / "out.npz") as made:
        assert made["arr_0"].shape == (4, 16, 16, 1)
        np.testing.assert_array_equal(made["labels"], [0, 0, 1, 1])
    flags[2] = f"--out={tmp_path}/folder"
    sample.run(cli.parse(sample, [*flags, "--num_samples=2"]))
    table = list(csv.DictReader((tmp_path / "folder/labels.csv").open()))
    assert [row["source"] for row in table] == ["a.png", "b.png"]
    flags[2] = f"--out={tmp_path}/less"
    with pytest.raises(ConfigError, match="set --num_samples=2 for one sample of each"):
        sample.run(cli.parse(sample, [*flags, "--num_samples=1"]))
