# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The schema, its errors, its JSON, its models, and every shipped config."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from rq import config as config_lib
from rq.config import sampling, schema
from rq.config.__main__ import reference
from rq.models import build

ROOT = pathlib.Path(__file__).parent.parent
SHIPPED = [
    ("digits", ""),
    ("digits", "tiny"),
    ("emoji", ""),
    ("emoji", "nogan"),
    ("emoji", "lpips"),
    ("emoji", "class_text"),
    ("imagenet", ""),
    ("imagenet", "480M"),
    ("imagenet", "821M"),
    ("imagenet", "1.4B"),
    ("imagenet", "3.8B"),
    ("ffhq", ""),
    ("lsun", "church"),
    ("lsun", "cat"),
    ("lsun", "bedroom"),
    ("cc3m", ""),
    ("cc3m", "coco"),
    ("ffhq", "celeba_hq"),
    ("cifar10", ""),
    ("codes", ""),
    ("folder", ""),
    ("folder", "64"),
    ("folder", "128"),
    ("folder", "lpips"),
]


def load(name, *variant):
    path = ROOT / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"configs_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*variant)


def changed(changes, name="digits", variant="tiny"):
    config = load(name, variant)
    config.update_from_flattened_dict(changes)
    return config


# Shipped configs.


def test_every_config_file_is_tested():
    names = {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert names == {name for name, _ in SHIPPED}


@pytest.mark.parametrize(("name", "variant"), SHIPPED)
def test_shipped_configs_are_valid(name, variant):
    config = load(name, variant)
    if name == "folder":
        with pytest.raises(config_lib.ConfigError, match="--config.data.path"):
            config_lib.validate(config)
        config.data.path = "images"
    config_lib.validate(config)


def test_defaults_are_valid():
    config_lib.validate(config_lib.default())


def test_bare_config_files_take_their_default_variant():
    assert load("imagenet") == load("imagenet", "1.4B")
    assert load("digits") == load("digits", "")


@pytest.mark.parametrize(
    "name", ["digits", "imagenet", "ffhq", "lsun", "cc3m", "cifar10"]
)
def test_unknown_variants_are_refused_and_the_known_ones_named(name):
    with pytest.raises(config_lib.ConfigError, match="unknown config variant '7B'; kn"):
        load(name, "7B")


@pytest.mark.parametrize(
    ("name", "variant", "stage", "steps"),
    [
        ("imagenet", "1.4B", "rqvae", 500_455),
        ("imagenet", "1.4B", "transformer", 62_556),
        ("ffhq", "", "rqvae", 70_312),
        ("ffhq", "", "transformer", 93_750),
        ("lsun", "church", "transformer", 147_922),
        ("lsun", "cat", "transformer", 80_921),
        ("lsun", "bedroom", "transformer", 148_097),
        ("cc3m", "", "rqvae", 23_046),
        ("cc3m", "coco", "rqvae", 64_674),
        ("ffhq", "celeba_hq", "rqvae", 33_984),
        ("cc3m", "", "transformer", 144_042),
    ],
)
def test_steps_are_those_the_docstrings_state(name, variant, stage, steps):
    assert load(name, variant)[stage].steps == steps


# Parameter counts of the paper, by abstract evaluation.


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "variant", "parameters"),
    [
        ("imagenet", "480M", 480_921_088),
        ("imagenet", "821M", 820_899_328),
        ("imagenet", "1.4B", 1_387_529_728),
        ("imagenet", "3.8B", 3_822_488_064),
        ("ffhq", "", 355_393_536),
        ("lsun", "church", 370_087_936),
        ("lsun", "cat", 612_061_184),
        ("lsun", "bedroom", 612_061_184),
        ("cc3m", "", 654_061_568),
    ],
)
def test_transformers_have_the_papers_parameters(name, variant, parameters):
    config = load(name, variant)
    model = build.transformer_model(config)
    length = model.condition_length
    variables = jax.eval_shape(
        model.init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, *model.code_shape), jnp.int32),
        jax.ShapeDtypeStruct((1, length) if length > 1 else (1,), jnp.int32),
        jax.ShapeDtypeStruct((max(model.num_codes), model.input_dim), jnp.float32),
    )
    assert count(variables["params"]) == parameters


@pytest.mark.parametrize(
    ("name", "variant", "parameters"),
    [
        ("imagenet", "1.4B", 104_402_051),
        ("ffhq", "", 100_732_035),
        ("lsun", "church", 104_402_051),
    ],
)
def test_rqvaes_have_the_papers_parameters(name, variant, parameters):
    config = load(name, variant)
    model = build.rqvae_model(config)
    images = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    assert count(params["encoder"]) == 41_101_312
    assert count(params["decoder"]) == 58_974_595
    # The authors count the codebook, with a row of padding that is never used.
    codebook = (model.num_codes[0] + 1) * model.code_dim
    assert count(params) + codebook == parameters


def test_models_follow_packing_condition_and_depth():
    config = load("digits", "tiny")
    assert build.rqvae_model(config).code_dim == 4 * 4  # 8 x 8 into 4 x 4
    model = build.transformer_model(config)
    assert (model.input_dim, model.num_conditions, model.body.heads) == (16, 10, 2)
    text = build.transformer_model(load("cc3m", ""))
    assert (text.num_conditions, text.condition_length) == (16384, 32)


# Validation.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # Choices.
        ({"data.augment": "crop"}, "data.augment = 'crop': must be one of 'none', "),
        ({"data.channels": 2}, "data.channels = 2: must be one of 1, 3"),
        ({"rqvae.loss.reconstruction": "l2"}, "must be one of 'mse', 'l1'"),
        ({"rqvae.optimizer.name": "adan"}, "must be one of 'adam', 'adamw', 'lion'"),
        ({"rqvae.model.dtype": "float16"}, "must be one of 'float32', 'bfloat16'"),
        ({"transformer.condition": "label"}, "must be one of 'none', 'class', 'text'"),
        ({"transformer.model.body.gelu": "v1"}, "must be one of 'exact', 'quick'"),
        ({"transformer.model.remat": "all"}, "must be one of 'none', 'full', 'dots'"),
        # Types, ranges.
        ({"rqvae.model.num_codes": ("a",)}, "num_codes = ('a',): must be a tuple of"),
        ({"rqvae.model.ch_mult": (1, 1.5)}, "must be a tuple of int"),
        ({"sampling.top_p": (True,)}, "sampling.top_p = (True,): must be a tuple of"),
        ({"rqvae.optimizer.eps": float("nan")}, "eps = nan: must be a finite number"),
        ({"seed": -1}, "seed = -1: must be within [0, 2**32)"),
        ({"rqvae.steps": 0}, "rqvae.steps = 0: must be positive"),
        ({"rqvae.batch_size": -8}, "rqvae.batch_size = -8: must be positive"),
        ({"rqvae.model.ch_mult": (1, 0)}, "ch_mult = (1, 0): must be positive"),
        ({"transformer.model.head.layers": 0}, "head.layers = 0: must be positive"),
        ({"transformer.optimizer.b2": 1.0}, "b2 = 1.0: must be within [0, 1)"),
        ({"transformer.text.length": 1}, "length = 1: must be 2 tokens or more"),
        ({"mesh.data": 0}, "mesh.data = 0: must be positive, or -1"),
        ({"mesh.tensor": 0}, "mesh.tensor = 0: must be positive, or -1"),
        ({"mesh.fsdp": -1}, "mesh.fsdp = -1: only one axis may be -1"),
        ({"data.name": ""}, "data.name = '': must be non-empty"),
        ({"checkpoint.keep": 0}, "checkpoint.keep = 0: must be positive"),
        ({"rqvae.model.num_codes": (65_537,)}, "(65537,): codes above 65,536 cannot"),
        ({"seed": 2**32}, "seed = 4294967296: must be within [0, 2**32)"),
        # Stages.
        ({"stages": ()}, "stages = (): must be some of"),
        ({"stages": ("vae",)}, "('vae',): must be one of 'features', 'rqvae',"),
        ({"stages": ("codes", "rqvae")}, "each once and in this order"),
        ({"stages": ("codes", "codes")}, "each once and in this order"),
        # The autoencoder.
        (
            {"data.resolution": 33},
            "data.resolution = 33: is not divisible by 2, from 2 levels",
        ),
        ({"rqvae.model.ch_mult": ()}, "ch_mult = (): must not be empty"),
        ({"rqvae.model.ch": 48}, "ch = 48: width 48 = 48 x 1 is no multiple of 32"),
        (
            {"rqvae.model.attn_resolutions": (32,)},
            "attn_resolutions = (32,): no level has height 32; they are (16, 8)",
        ),
        ({"rqvae.model.code_shape": (4, 4)}, "must be three numbers: rows, columns,"),
        (
            {"rqvae.model.code_shape": (3, 4, 2)},
            "code_shape = (3, 4, 2): 3 rows do not divide the feature map's height 8",
        ),
        ({"rqvae.model.code_shape": (4, 32, 2)}, "32 columns do not divide the"),
        # Codebooks.
        (
            {"rqvae.model.num_codes": (16, 16, 16)},
            "has 3 values; give 1, or one for each depth: 2",
        ),
        ({"rqvae.model.decay": ()}, "decay = (): has 0 values; give 1, or one for"),
        ({"rqvae.model.decay": (1.0,)}, "decay = (1.0,): must be within [0, 1)"),
        (
            {"rqvae.model.num_codes": (16, 8)},
            "shared_codebook = True: one codebook cannot have sizes (16, 8)",
        ),
        (
            {"rqvae.model.num_codes": (16, 8), "rqvae.model.shared_codebook": False},
            "shared_classifier = True: one classifier cannot serve codebooks of sizes",
        ),
        (
            {
                "rqvae.model.num_codes": (16, 8),
                "rqvae.model.shared_codebook": False,
                "transformer.model.shared_classifier": False,
                "transformer.model.body_from_codebook": False,
            },
            "shared_token_embedding = True: one embedding cannot serve codebooks",
        ),
        # The transformer.
        (
            {"transformer.model.body.heads": 5},
            "body.heads = 5: does not divide transformer.model.width 32",
        ),
        (
            {"data.num_classes": 0},
            "transformer.condition = 'class': needs labels, but data.num_classes is 0",
        ),
        (
            {"transformer.loss.head_fraction": 0.0},
            "loss.head_fraction = 0.0: must be within (0, 1]",
        ),
        (
            {"transformer.loss.head_fraction": 1.5},
            "loss.head_fraction = 1.5: must be within (0, 1]",
        ),
        (
            {
                "transformer.loss.head_fraction": 0.3,
                "transformer.loss.microbatches": 2,
            },
            "microbatches = 2: does not divide the 5 positions of transformer.loss.",
        ),
        # Training.
        (
            {"transformer.grad_accum_steps": 3},
            "batch_size = 8: is not divisible by transformer.grad_accum_steps 3",
        ),
        (
            {"rqvae.grad_accum_steps": 2, "mesh.fsdp": 8},
            "microbatches of 4 images are not divisible by 8, from mesh",
        ),
        (
            {"transformer.optimizer.warmup_steps": 5},
            "warmup_steps = 5: is more than transformer.steps 4",
        ),
        (
            {"rqvae.optimizer.min_learning_rate": 1.0},
            "min_learning_rate = 1.0: is above the learning rate 0.001",
        ),
        # Sampling.
        ({"sampling.top_k": (1, 2, 3)}, "has 3 values; give 1, or one for each"),
        ({"sampling.top_k": (-1,)}, "top_k = (-1,): must be 0 or more"),
        ({"sampling.top_p": (0.0,)}, "top_p = (0.0,): must be within (0, 1]"),
        ({"sampling.top_p": (1.5,)}, "top_p = (1.5,): must be within (0, 1]"),
        ({"sampling.temperature": (1.0, 0.0)}, "(1.0, 0.0): must be 1e-6 or more"),
        ({"sampling.guidance": (2.0,)}, "condition_dropout above 0"),
        (
            {"transformer.condition": "none", "transformer.condition_dropout": 0.1},
            "condition_dropout = 0.1: there is no condition to drop",
        ),
        (
            {
                "transformer.condition": "class_text",
                "transformer.condition_dropout": 0.4,
                "data.num_classes": 3,
            },
            "condition_dropout = 0.4: must be at most 1/3",
        ),
        ({"transformer.loss.temperature": 0.0}, "temperature = 0.0: must be positive"),
    ],
)
def test_bad_values_are_reported_in_one_line(changes, message):
    with pytest.raises(config_lib.ConfigError) as error:
        config_lib.validate(changed(changes))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"rqvae.model.num_codes": (16, 8), "rqvae.model.shared_codebook": False}
        | {"transformer.model.shared_classifier": False},
        {"rqvae.model.decay": (0.99, 0.9), "sampling.top_k": (4, 0)},
        {"sampling.top_p": (1,), "sampling.temperature": (1, 0.5)},
        {"sampling.guidance": (2.0,), "transformer.condition_dropout": 0.1},
        {"rqvae.model.attn_resolutions": (8, 16), "stages": ("transformer",)},
        {"transformer.condition": "none", "data.num_classes": 0},
        {"mesh.data": 2, "mesh.fsdp": 2, "rqvae.grad_accum_steps": 2},
        {"mesh.data": 1, "mesh.fsdp": -1},
        {"rqvae.batch_size": 3, "mesh.fsdp": 8, "stages": ("transformer",)},
        {"rqvae.model.num_codes": (65_536,)},
        {"rqvae.model.num_codes": (65_537,), "stages": ("rqvae",)},
        {"rqvae.model.num_codes": (65_537,), "transformer.online": True},
    ],
)
def test_good_values_pass(changes):
    config_lib.validate(changed(changes))


def test_unknown_and_missing_fields_are_reported():
    config = load("digits", "tiny")
    with config.unlocked():
        config.rqvae.step = 3
    with pytest.raises(config_lib.ConfigError, match='mean "rqvae.steps"'):
        config_lib.validate(config)
    with config.unlocked():
        del config.rqvae.step, config.rqvae.steps
    with pytest.raises(config_lib.ConfigError, match='missing .* "rqvae.steps"'):
        config_lib.validate(config)


def test_every_field_has_a_default_in_range_and_a_meaning():
    for name, field in schema.FIELDS.items():
        field.check(name, field.default)
        assert field.doc and "\n" not in field.doc, name


def test_fields_younger_than_runs_say_what_was_in_force_before():
    """Unless training may change them, when older runs take their defaults."""
    for name, field in schema.FIELDS.items():
        assert field.since == "0.1" or field.changeable or field.before is not None, (
            name
        )


def test_a_range_belongs_to_its_field_alone():
    """Two fields of one name, or of one ending, may have other ranges."""
    for changes, message in (
        ({"transformer.text.dropout": 1.0}, "transformer.text.dropout = 1.0"),
        ({"profile.start": -1}, "profile.start = -1"),
        ({"rqvae.adversarial.weight": -1.0}, "rqvae.adversarial.weight = -1.0"),
        ({"transformer.text.weight": 1.5}, "transformer.text.weight = 1.5"),
    ):
        with pytest.raises(config_lib.ConfigError, match=message):
            config_lib.validate(changed(changes))
    config_lib.validate(changed({"rqvae.adversarial.weight": 1.5}))


def test_the_reference_of_the_config_is_not_stale():
    found = (ROOT / "docs/config.md").read_text()
    assert found == reference(), "python -m rq.config > docs/config.md"
    for name in schema.FIELDS:
        assert f"| `{name.rpartition('.')[2]}` |" in found


def test_a_misspelt_field_cannot_be_set():
    with pytest.raises(AttributeError):
        config_lib.default().rqvae.stepss = 3


# JSON.


@pytest.mark.parametrize(("name", "variant"), SHIPPED)
def test_json_gives_back_an_equal_config(name, variant):
    config = load(name, variant)
    text = config_lib.to_json(config)
    restored = config_lib.from_json(text)
    assert restored == config
    assert config_lib.to_json(restored) == text
    for field, value in schema.fields(config).items():
        assert type(schema.fields(restored)[field]) is type(value), field


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["rqvae"].update(stepss=1), 'unknown config field "rqvae.stepss"'),
        (lambda c: c["rqvae"].pop("steps"), 'missing config field "rqvae.steps"'),
        (lambda c: c.pop("transformer"), 'missing config field "transformer.'),
        (lambda c: c["rqvae"].update(steps="9"), "rqvae.steps = '9': must be an int"),
        (lambda c: c.update(rqvae=3), '"rqvae" is a section'),
        (lambda c: c["data"].update(name=None), "data.name = None: must be a string"),
        (lambda c: c["rqvae"]["model"].update(ch_mult=1), "must be a tuple of int"),
    ],
)
def test_json_of_another_schema_is_refused(change, message):
    stored = json.loads(config_lib.to_json(config_lib.default()))
    change(stored)
    with pytest.raises(config_lib.ConfigError) as error:
        config_lib.from_json(json.dumps(stored))
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3"])
def test_what_is_not_a_json_object_is_refused(text):
    with pytest.raises(config_lib.ConfigError, match="is not a JSON object"):
        config_lib.from_json(text)


def test_json_may_lack_what_does_not_change_the_weights():
    stored = json.loads(config_lib.to_json(config_lib.default()))
    del stored["log"], stored["data"]["threads"]
    assert config_lib.from_json(json.dumps(stored)) == config_lib.default()


def test_json_from_before_a_field_has_what_was_then_in_force():
    """Not the default, which may have changed since."""
    config = config_lib.default()
    config.transformer.optimizer.mu_dtype = "bfloat16"
    stored = json.loads(config_lib.to_json(config))
    del stored["transformer"]["optimizer"]["mu_dtype"]
    found = config_lib.from_json(json.dumps(stored))
    assert found.transformer.optimizer.mu_dtype == "float32"
    assert config_lib.differences(found, config) == [
        "transformer.optimizer.mu_dtype: 'float32' != 'bfloat16'"
    ]


def test_differences_name_both_values_and_leave_out_changeable_fields():
    a = load("digits", "tiny")
    b = changed({"rqvae.steps": 9, "log.every": 7, "data.dir": "/x", "seed": 1})
    assert config_lib.differences(a, b) == ["rqvae.steps: 4 != 9", "seed: 0 != 1"]
    assert config_lib.differences(a, a) == []


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("rqvae.accumulate", "rqvae.grad_accum_steps", 4),
        ("features.accumulate", "features.grad_accum_steps", 2),
        ("transformer.accumulate", "transformer.grad_accum_steps", 8),
        ("transformer.loss.pieces", "transformer.loss.microbatches", 16),
    ],
)
def test_json_with_the_old_name_of_a_field_still_loads(old, new, value):
    config = config_lib.default()
    config.update_from_flattened_dict({new: value})
    stored = json.loads(config_lib.to_json(config))
    *sections, leaf = old.split(".")
    part = stored
    for name in sections:
        part = part[name]
    part[leaf] = part.pop(new.rpartition(".")[2])
    assert config_lib.from_json(json.dumps(stored)) == config
    with pytest.raises(config_lib.ConfigError, match=f'"{old}" is now "{new}"'):
        config_lib.validate(_with(old, value))


def _with(name, value):
    config = config_lib.default()
    with config.unlocked():
        section, _, leaf = name.rpartition(".")
        part = config
        for key in section.split("."):
            part = part[key]
        part[leaf] = value
    return config


def test_settings_from_before_a_sampling_option_existed_load():
    stored = json.loads(config_lib.to_json(config_lib.default()))
    del stored["sampling"]["min_p"], stored["sampling"]["seed"]
    assert config_lib.from_json(json.dumps(stored)) == config_lib.default()


def test_paths_become_absolute_but_for_urls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_lib.default()
    config.data.path, config.data.dir = "images", "gs://bucket/data"
    found = config_lib.with_absolute_paths(config)
    assert found.data.path == str(tmp_path / "images")
    assert found.data.dir == "gs://bucket/data" and found.rqvae.lpips_weights == ""
    assert config.data.path == "images"


# Sampling options.


def test_sampling_options_are_the_section_of_the_config():
    section = config_lib.default().sampling
    assert config_lib.SamplingConfig(**section) == config_lib.SamplingConfig()
    assert set(section) == set(sampling.OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_p": 2.0}, "sampling.top_p = (2.0,): must be within (0, 1]"),
        ({"temperature": 1e-38}, "sampling.temperature = (1e-38,): must be"),
        ({"top_k": (1.5,)}, "sampling.top_k = (1.5,): must be a tuple of int"),
        ({"guidance_schedule": "up"}, "must be one of 'constant', 'linear', 'cosine'"),
        ({"seed": 2**32}, "sampling.seed = 4294967296: must be within [0, 2**32)"),
        ({"batch_size": 0}, "sampling.batch_size = 0: must be positive"),
    ],
)
def test_sampling_options_out_of_range_are_refused(options, message):
    with pytest.raises(config_lib.ConfigError) as error:
        config_lib.SamplingConfig(**options)
    assert message in str(error.value)


def test_sampling_options_are_one_or_one_for_each_depth():
    options = config_lib.SamplingConfig(top_k=8, top_p=(0.9, 0.8))
    assert options.top_k == (8,) and options.replace(top_p=None) == options
    options.check_depth(2)
    with pytest.raises(config_lib.ConfigError, match="has 2 values; give 1, or one"):
        options.check_depth(4)


def test_results_are_known_by_what_changes_them_alone():
    settings = config_lib.SamplingConfig(top_k=8, seed=3, batch_size=7).settings()
    assert settings == config_lib.SamplingConfig(top_k=8).settings()
    names = {name for name, o in sampling.OPTIONS.items() if o.since == "0.1"}
    assert set(settings) == names - {"batch_size"}
