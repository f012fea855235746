# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of `init_from`: what stages keep of a given model, and that they do."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from authors_test import small_config, weights, write_tokenizer
from config_test import changed, load
from etils import epath
from toy import Batches, Toy, fit
from train_test import STEPS, Interrupt, assert_same

import rq
from rq.cli import convert_run, program, run_checks, sample, train
from rq.config import (
    ConfigError,
    from_json,
    to_json,
    validate,
    with_absolute_paths,
    with_portable_paths,
)
from rq.config.stored import read as read_config
from rq.convert import saved_folder
from rq.data import text
from rq.experiment import Experiment
from rq.models.build import rqvae_model, transformer_model
from rq.parallel import sharding
from rq.training import checkpoint, given_model, init_from, kept_weights
from rq.training.checkpoint_manager import Checkpoints
from rq.training.stages import RQVAEStage, TransformerStage
from rq.training.train_state import TrainState

INFO = {"steps": {"rqvae": 3, "transformer": 5}, "metrics": {}, "licence": "MIT"}
TINY = load("digits", "tiny")


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# What is kept


def new_parts(stage, changes, there=TINY, **options):
    """Returns the parts that a stage does not keep, if these fields differ."""
    here = there.copy_and_resolve_references()
    here.update_from_flattened_dict(changes)
    validate(here)
    plan = kept_weights.plan(stage, there, here, "DIR", **options)
    return dict(line.split(": ", 1) for line in plan.text[1:])


def test_tables_of_positions_are_of_one_grid():
    """Both have 16 positions."""
    there, here = load("digits", "tiny"), load("digits", "tiny")
    for config in (there, here):
        config.transformer.order, config.data.source = "random", "grey"
    wide = {"rqvae.model.code_shape": (2, 8, 2), "data.resolution": (8, 32)}
    here.update_from_flattened_dict(wide)
    validate(here)
    kept = kept_weights.plan("transformer", there, here, "DIR").kept
    names = {name.split("/")[1] for name in kept}
    grids = {"body_positions", "target_positions", "source_positions"}
    assert not names & grids
    assert {"body_stack", "head_stack"} <= names


def test_target_positions_are_new_where_rows_were_read():
    found = new_parts("transformer", {"transformer.order": "random"})
    assert found == {
        "target_positions": "new (transformer.order 'raster' there, 'random' here)"
    }


def test_weights_for_another_rqvae_of_source_images_are_new():
    there = TINY.copy_and_resolve_references()
    there.data.source = "grey"
    assert not new_parts("transformer", {}, there)
    found = new_parts("transformer", {}, there, same_source=False)
    assert all(part.startswith("source") for part in found) and found


@pytest.mark.parametrize(
    ("before", "after", "how"),
    [
        ((16, 16), (16, 8), "the most used codes stay"),
        ((16, 8), (16, 16), "codes are added from residuals of the first batches"),
    ],
)
def test_codebooks_of_another_size_are_resized_in_arrays_of_the_same_shape(
    before, after, how
):
    """They have the size of the largest depth; the numbers of codes change."""
    there = TINY.copy_and_resolve_references()
    there.rqvae.model.shared_codebook = False
    there.rqvae.model.num_codes = before
    there.transformer.model.shared_classifier = False
    changes, why = {"rqvae.model.num_codes": after}, f"{before} there, {after} here)"
    assert new_parts("rqvae", {}, there) == {}
    found = new_parts("rqvae", changes, there)
    assert found == {"codebook": f"{how} (rqvae.model.num_codes {why}"}
    found = new_parts("transformer", changes, there)
    names = "classifier_bias, classifier_kernel"
    assert found == {names: f"new (rqvae.model.num_codes {why}"}


@pytest.mark.parametrize("stage", ["rqvae", "transformer"])
def test_the_same_model_is_kept_whole(stage):
    plan = kept_weights.plan(stage, TINY, TINY, "DIR")
    number, more = {
        "rqvae": ("218,773", " and the codebook"),
        "transformer": ("28,016", ""),
    }[stage]
    assert plan.text == (
        f"{stage}: starts from DIR, {number} of {number} parameters{more}",
    )


@pytest.mark.parametrize(
    ("stage", "changes", "expected"),
    [
        ("rqvae", {"data.num_classes": 3}, {}),
        (
            "transformer",
            {"data.num_classes": 3},
            {"condition_embedding": "new (data.num_classes 10 there, 3 here)"},
        ),
        (
            "rqvae",
            {"rqvae.model.num_codes": (32,)},
            {"codebook": "codes are added from residuals of the first batches "
             "(rqvae.model.num_codes (16,) there, (32,) here)"},
        ),
        (
            "rqvae",
            {"rqvae.model.num_codes": (8,)},
            {"codebook": "the most used codes stay "
             "(rqvae.model.num_codes (16,) there, (8,) here)"},
        ),
        (
            "rqvae",
            {"rqvae.model.shared_codebook": False},
            {"codebook": "each depth takes its own from the shared one "
             "(rqvae.model.shared_codebook True there, False here)"},
        ),
        (
            "rqvae",
            {"rqvae.model.embed_dim": 8},
            {"codebook": "new (rqvae.model.embed_dim 4 there, 8 here)",
             "quant_conv": "new (rqvae.model.embed_dim 4 there, 8 here)",
             "post_quant_conv/conv/kernel": "new (rqvae.model.embed_dim 4 there, "
             "8 here)"},
        ),
        (
            "transformer",
            {"rqvae.model.num_codes": (32,)},
            {
                "classifier_bias, classifier_kernel": "new (rqvae.model.num_codes "
                "(16,) there, (32,) here)"
            },
        ),
        (
            "transformer",
            {"rqvae.model.embed_dim": 8},
            {name: "new (rqvae.model.embed_dim 4 there, 8 here)"
             for name in ("body_input/kernel", "head_input/kernel",
                          "classifier_bias, classifier_kernel")},
        ),
        (
            "rqvae",
            {"data.resolution": 32, "rqvae.model.code_shape": (8, 8, 2)},
            {},
        ),
        (
            "transformer",
            {"data.resolution": 32, "rqvae.model.code_shape": (8, 8, 2)},
            {"body_positions": "new (rqvae.model.code_shape (4, 4, 2) there, "
             "(8, 8, 2) here)"},
        ),
        (
            "transformer",
            {"rqvae.model.code_shape": (4, 4, 3)},
            {"head_positions": "new (rqvae.model.code_shape (4, 4, 2) there, "
             "(4, 4, 3) here)"},
        ),
        (
            "transformer",
            {"transformer.condition": "none"},
            {"condition": "new (transformer.condition 'class' there, 'none' here)"},
        ),
        (
            "transformer",
            {"transformer.model.body.heads": 4},
            {"body_stack": "new (transformer.model.body.heads 2 there, 4 here)"},
        ),
        (
            "transformer",
            {"transformer.model.head.qk_norm": True},
            {"head_stack/blocks/attention/key_norm/scale, "
             "head_stack/blocks/attention/query_norm/scale": "new "
             "(transformer.model.head.qk_norm False there, True here)"},
        ),
        (
            "rqvae",
            {"rqvae.model.attn_resolutions": (8,)},
            {"encoder": "10 of 60 arrays are new (rqvae.model.attn_resolutions () "
             "there, (8,) here)",
             "decoder": "20 of 86 arrays are new (rqvae.model.attn_resolutions () "
             "there, (8,) here)"},
        ),
    ],
)  # fmt: skip
def test_parts_that_differ_are_new_and_the_fields_are_named(stage, changes, expected):
    found = new_parts(stage, changes)
    assert found == expected


def test_a_smaller_model_uses_only_some_of_the_arrays():
    large = changed({"transformer.model.head.qk_norm": True})
    assert new_parts("transformer", {"transformer.model.head.qk_norm": False}, large)[
        "head_stack"
    ].startswith("2 arrays there are not used (transformer.model.head.qk_norm True")


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("rqvae", {"rqvae.model.ch": 64}),
        ("transformer", {"transformer.model.width": 48}),
    ],
)
def test_a_stage_that_has_nothing_in_common_is_refused(stage, changes):
    with pytest.raises(ConfigError, match=f"{stage}' has nothing in common with DIR: "):
        new_parts(stage, changes)


# Taking it


@pytest.fixture(scope="module")
def places(trained, tmp_path_factory):
    """Folders with the models of the trained run, by kind."""
    folder = tmp_path_factory.mktemp("places")
    rq.load(trained).save(folder / "saved")
    convert_run.export(trained, folder / "authors", "authors")
    return {
        "run": trained,
        "saved": folder / "saved",
        "authors": folder / "authors",
    }


def states(config, run, stage):
    """Returns a stage's new state, and the one that it starts from."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    if stage == "rqvae":
        made = RQVAEStage(config, mesh, lambda: iter([]))
    else:
        made = TransformerStage(
            config, mesh, lambda: iter([]), weights(rqvae_model(config), seed=5)
        )
    key = jax.random.key(config.seed)
    shardings = sharding.state_shardings(jax.eval_shape(made.init, key), mesh)
    init = jax.jit(lambda k: sharding.unbox(made.init(k)), out_shardings=shardings)
    start = init_from.first_state(config, epath.Path(run), stage)
    return init(key), start(init(key))


@pytest.mark.parametrize("kind", ["run", "saved", "authors"])
@pytest.mark.parametrize("stage", ["rqvae", "transformer"])
def test_step_0_has_the_weights_of_any_kind_of_folder(places, tmp_path, stage, kind):
    average = f"{stage}.optimizer.ema"
    config = changed({"init_from": str(places[kind]), average: 0.9})
    fresh, state = states(config, tmp_path, stage)
    model, _ = checkpoint.load_model(places["run"] / stage, stage)
    equal(state.params, model["params"])
    equal(state.ema, model["params"])
    # In stage 2 it is that of the run's own RQ-VAE.
    equal(state.codebook, model["codebook"] if stage == "rqvae" else fresh.codebook)
    assert float(np.sum(model["codebook"]["state"].counts)) > 0
    equal(state.opt_state, fresh.opt_state)
    assert int(state.step) == 0


def test_what_is_new_is_as_in_a_fresh_run(places, tmp_path):
    config = changed({"init_from": str(places["run"]), "data.num_classes": 3})
    fresh, state = states(config, tmp_path, "transformer")
    given, _ = checkpoint.load_model(places["run"] / "transformer", "transformer")
    equal(state.params["condition_embedding"], fresh.params["condition_embedding"])
    equal(state.params["body_stack"], given["params"]["body_stack"])


@pytest.mark.slow
def test_the_average_of_a_given_run_is_taken(tmp_path):
    """It is what the run samples with, and what a saved folder has."""
    module = rqvae_model(TINY)
    params, average = (weights(module, seed)["params"] for seed in (1, 2))
    model = weights(module, 1) | {"ema": average}
    state = TrainState(
        step=jnp.asarray(4), opt_state={}, key=jax.random.key(0), **model
    )
    run = tmp_path / "run"
    with contextlib.closing(Checkpoints(run / "rqvae", "rqvae")) as checkpoints:
        checkpoints.save(4, state, to_json(TINY), {})
        checkpoints.wait_for_checksums()
    (run / "config.json").write_text(to_json(TINY))
    del params
    equal(given_model.opened(run).read("rqvae")["params"], average)


def test_a_stage_with_a_checkpoint_needs_the_given_model_no_more(trained):
    config = changed({"init_from": "/gone"})
    path = epath.Path(trained)
    init_from.check(config, path)
    state = object()
    assert init_from.first_state(config, path, "rqvae")(state) is state
    assert not init_from.gives_rqvae(config, path)


def test_a_training_that_is_killed_starts_again_or_resumes(tmp_path):
    """The loop changes the first state alone, so that resuming is exact."""

    def start(state):
        calls.append(int(state.step))
        return state.replace(params=jax.tree.map(lambda x: x + 1, state.params))

    def train(path, at=None):
        def act(index):
            if index == at:
                raise Interrupt

        return fit(Toy(STEPS), path, Batches(act=act), first_state=start)

    calls = []
    undisturbed = train(tmp_path / "undisturbed")
    for at, starts in ((1, [0, 0]), (4, [0])):  # the first checkpoint is that of step 2
        calls.clear()
        with pytest.raises(Interrupt):
            train(tmp_path / str(at), at)
        assert_same(train(tmp_path / str(at)), undisturbed)
        assert calls == starts


# Before any compute


def test_check_says_what_is_kept(places, tmp_path, capsys):
    config = changed({"init_from": str(places["saved"]), "data.num_classes": 3})
    init_from.check(config, epath.Path(tmp_path))
    assert capsys.readouterr().out.splitlines() == [
        f"rqvae: starts from {places['saved']}, 218,773 of 218,773 "
        "parameters and the codebook",
        f"transformer: starts from {places['saved']}, 27,696 of 27,792 parameters",
        "  condition_embedding: new (data.num_classes 10 there, 3 here)",
    ]


@pytest.mark.slow
def test_a_model_without_a_transformer_starts_stage_1_alone(tmp_path, capsys):
    variables = {"rqvae": weights(rqvae_model(TINY))}
    folder = tmp_path / "saved"
    folder.mkdir()
    info = INFO | {"steps": {"rqvae": 3}}
    saved_folder.write(folder, TINY, variables, info, None)
    config = changed({"init_from": str(folder)})
    init_from.check(config, epath.Path(tmp_path))
    out = capsys.readouterr().out
    assert f"transformer: {folder} has no RQ-Transformer; starts afresh" in out
    fresh, state = states(config, tmp_path, "transformer")
    equal(state.params, fresh.params)
    config.init_stages = ("transformer",)
    with pytest.raises(ConfigError, match=r"saved has no RQ-Transformer$"):
        init_from.check(config, epath.Path(tmp_path))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("gone", "gone does not exist: name a run"),
        ("file", "file is a file, not a folder"),
        ("run", "init_from: nothing was trained in .*run"),
        ("empty", "no checkpoint in it, as model.pt"),
    ],
)
def test_folders_without_models_are_refused(tmp_path, place, message):
    (tmp_path / "file").write_text("")
    for name in ("run", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "run/config.json").write_text(to_json(TINY))
    config = changed({"init_from": str(tmp_path / place)})
    with pytest.raises((ConfigError, FileNotFoundError), match=message):
        init_from.check(config, epath.Path(tmp_path) / "new")


def test_a_given_rqvae_that_is_not_trained_must_be_that_of_the_config(places, tmp_path):
    config = changed(
        {
            "init_from": str(places["run"]),
            "stages": ("codes", "transformer"),
            "rqvae.model.num_codes": (32,),
        }
    )
    with pytest.raises(ConfigError, match=r"num_codes is \(16,\) there, \(32,\) here"):
        init_from.check(config, epath.Path(tmp_path))


# Texts


@pytest.fixture
def with_text(tmp_path):
    """A saved model with text, and the config of it."""
    config, folder = small_config("text"), tmp_path / "with_text"
    folder.mkdir()
    variables = {
        "rqvae": weights(rqvae_model(config)),
        "transformer": weights(transformer_model(config)),
    }
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json")
    saved_folder.write(folder, config, variables, INFO, tokenizer)
    return folder, config


@pytest.mark.slow
def test_a_text_model_brings_its_tokenizer(with_text, tmp_path):
    folder, config = with_text
    config.init_from = str(folder)
    run = epath.Path(tmp_path) / "run"
    run.mkdir()
    assert "condition" not in "".join(kept(config, run))
    train.make_tokenizer(config, run)
    theirs, ours = (text.load(path / text.FILE, 5) for path in (folder, run))
    assert ours.is_same(theirs)
    assert "condition" not in "".join(kept(config, run))


@pytest.mark.slow
def test_another_tokenizer_makes_the_table_new(with_text, tmp_path):
    folder, config = with_text
    config.init_from = str(folder)
    other = tmp_path / "other.json"
    content = json.loads((folder / text.FILE).read_text())
    words = list(content["model"]["vocab"])
    content["model"]["vocab"] = {word: i for i, word in enumerate(reversed(words))}
    content["added_tokens"] = []
    other.write_text(json.dumps(content))
    config.transformer.text.tokenizer = str(other)
    run = epath.Path(tmp_path) / "run"
    assert "condition: new (another tokenizer)" in kept(config, run)
    config.transformer.text.update(dict(tokenizer="", vocab_size=300))
    assert init_from.tokenizer(config, run) is None  # it trains its own
    (line,) = [x for x in kept(config, run) if x.startswith("condition")]
    assert "text.vocab_size 40 there, 300 here" in line


def kept(config, run):
    given = given_model.opened(config.init_from)
    return init_from._plan(config, run, given, "transformer").text


# The command line


def parsed(*args):
    return program.parse(train, args).config


def test_a_stored_config_is_accepted_with_overrides(places, tmp_path):
    run, saved = places["run"], places["saved"]
    stored = from_json((run / "config.json").read_text())
    assert parsed(f"--config={run}") == stored
    assert parsed(f"--config={run}/config.json") == stored
    changes = ("--config.data.num_classes=3", "--config.rqvae.model.num_codes=32")
    config = parsed("--config", str(saved), *changes)
    assert config.rqvae.model.num_codes == (32,) and config.data.num_classes == 3
    assert config.transformer == stored.transformer
    for flag, message in (
        (f"--config={tmp_path}", 'config.json" does not exist'),
        (f"--config={run}", "data.num_classes = -1: must be 0 or more"),
    ):
        with pytest.raises(ConfigError, match=message):
            parsed(flag, "--config.data.num_classes=-1")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="config.json: the config is not a JSON obj"):
        parsed(f"--config={tmp_path}")


def test_a_command_on_a_run_takes_no_other_stored_config(places):
    with pytest.raises(ConfigError, match="this command reads that of its run"):
        program.parse(sample, ["RUN", f"--config={places['run']}"])


def test_names_of_models_are_no_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for given, stored in (
        ("emoji", "emoji"),
        ("mine", str(tmp_path / "mine")),
        ("runs/x", str(tmp_path / "runs/x")),
    ):
        config = changed({"init_from": given})
        assert with_absolute_paths(config).init_from == stored
        assert with_portable_paths(config).init_from == ""
    for given, stored in (("emoji", "emoji"), ("/runs/x", "~/x")):
        config = changed({"transformer.source_rqvae": given})
        assert with_portable_paths(config).transformer.source_rqvae == stored


def test_the_config_of_a_saved_folder_names_its_own_rqvae_of_source_images(
    tmp_path,
):
    (tmp_path / "source").mkdir()
    (tmp_path / "there").mkdir()
    for given, expected in (
        ("emoji", "emoji"),
        (str(tmp_path / "there"), str(tmp_path / "there")),
        ("/gone", "/gone"),  # of a run, which is compared with
        ("~/gone", str(tmp_path / "source")),
    ):
        config = changed({"transformer.source_rqvae": given})
        (tmp_path / "config.json").write_text(to_json(config))
        found = read_config(tmp_path / "config.json")
        assert found.transformer.source_rqvae == expected


# The whole program


@pytest.mark.slow
def test_stage_2_is_trained_on_a_given_rqvae(places, data_dir, tmp_path):
    """The run has another number of classes; every command works on it."""
    changes = {
        "init_from": str(places["saved"]),
        "stages": ("codes", "transformer"),
        "data.dir": str(data_dir),
        "transformer.steps": 2,
    }
    run = tmp_path / "run"
    train.run_stages(changed(changes), run)
    given, _ = checkpoint.load_model(places["run"] / "rqvae", "rqvae")
    model, _ = checkpoint.load_model(run / "rqvae", "rqvae")
    equal(model["params"], given["params"])
    equal(model["codebook"], given["codebook"])
    experiment = Experiment(run)
    assert experiment.stages == ("rqvae", "transformer")
    assert experiment.finished("rqvae") and experiment.finished("transformer")
    assert (run / "samples/reconstructions.png").exists()
    before = (run / "rqvae/4/_CHECKPOINT_METADATA").read_bytes()
    run_checks.check_run(  # the given model is not opened again
        changed(changes), epath.Path(run), sharding.make_mesh()
    )
    assert (run / "rqvae/4/_CHECKPOINT_METADATA").read_bytes() == before
