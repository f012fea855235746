# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of stage 2 on codes of another tokenizer, from a file."""

import json

import numpy as np
import pytest
from config_test import load
from etils import epath

import rq
from rq.cli import found_conditions, own_codes, program, train
from rq.config import ConfigError, from_json, validate
from rq.data import DataError, given_codes
from rq.experiment import Experiment
from rq.training import checkpoint

N, SHAPE, SIZE, LENGTH = 30, (4, 4, 2), 16, 4


def arrays(**changes):
    """Returns the arrays of a file: codes of another tokenizer, with all that goes."""
    rng = np.random.default_rng(0)
    found = {
        "codes": rng.integers(0, SIZE, (N, *SHAPE)),
        "codebook": rng.normal(size=(SIZE, LENGTH)),
        "labels": np.arange(N) % 3,
    }
    return {name: x for name, x in (found | changes).items() if x is not None}


def written(folder, **changes):
    """Returns the path of a file of `arrays`."""
    np.savez(folder / "codes.npz", **arrays(**changes))
    return folder / "codes.npz"


def tiny(file, changes=None):
    """Returns the config of the smallest stage 2 on a file."""
    config = load("codes")
    config.update_from_flattened_dict({
        "transformer.codes_file": str(file), "data.holdout": 10,
        "transformer.batch_size": 8, "transformer.steps": 2,
        "transformer.model.width": 32, "transformer.model.dtype": "float32",
        "transformer.model.body.layers": 1, "transformer.model.body.heads": 2,
        "transformer.model.head.layers": 1, "transformer.model.head.heads": 2,
        "transformer.optimizer.warmup_steps": 0, "sampling.batch_size": 8,
        "transformer.text.vocab_size": 300, "transformer.text.length": 8,
    } | (changes or {}))  # fmt: skip
    validate(config)
    return config


def resolved(config, path="/nowhere"):
    config = own_codes.resolve(config, epath.Path(path))
    return found_conditions.resolve(config, epath.Path(path))


# Files


FAULTS = {
    "no array 'codebook'": {"codebook": None},
    "no array 'codes'": {"codes": None},
    "codes are float64, not integers": {"codes": np.zeros((N, 2, 2, 2))},
    r"codes have shape \(30, 4\), not \[N, H, W, D\]": {"codes": np.zeros((N, 4), int)},
    r"codes have shape \(0, 4, 4, 2\)": {"codes": np.zeros((0, *SHAPE), int)},
    "codes are within 0..16, the codebook has 0..15": {
        "codes": np.full((N, *SHAPE), 16) * (np.arange(N) > 3).reshape(-1, 1, 1, 1)
    },
    "codes are within -1..-1": {"codes": np.full((N, *SHAPE), -1)},
    "codebook is int64, not floats": {"codebook": np.zeros((SIZE, LENGTH), int)},
    "codebook has numbers that are not finite": {
        "codebook": np.full((SIZE, LENGTH), np.nan)
    },
    r"codebook has shape \(3, 16, 4\), not \[K, C\] or \[2, K, C\]": {
        "codebook": np.zeros((3, SIZE, LENGTH))
    },
    r"labels are int64 \[29\], not integers \[30\]": {"labels": np.zeros(N - 1, int)},
    "labels are float64": {"labels": np.zeros(N)},
    "labels begin at -1": {"labels": np.full(N, -1)},
    r"captions are int64 \[30\], not strings": {"captions": np.zeros(N, int)},
    r"captions are <U1 \[2\], not strings \[30\]": {"captions": np.array(["a", "b"])},
    r"features are float64 \[30, 4, 4, 3\], not floats \[30, 4, 4, 4\]": {
        "features": np.zeros((N, 4, 4, 3))
    },
    "features have numbers that are not finite": {
        "features": np.full((N, 4, 4, LENGTH), np.inf)
    },
}


@pytest.mark.parametrize("message", FAULTS)
def test_arrays_that_do_not_fit_are_refused(tmp_path, message):
    with pytest.raises(DataError, match=message) as info:
        given_codes.read(written(tmp_path, **FAULTS[message]))
    assert "\n" not in str(info.value) and "codes.npz" in str(info.value)


def test_other_files_are_refused(tmp_path):
    for name, content in (("a.npz", b"text"), ("b.npz", b""), ("c.npz", b"PK\3\4")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="is no .npz of numbers and strings"):
            given_codes.read(tmp_path / name)
    np.save(tmp_path / "d.npy", np.zeros(3))
    with pytest.raises(DataError, match="is no .npz"):
        given_codes.read(tmp_path / "d.npy")
    with pytest.raises(DataError, match="is no .npz of numbers and strings"):
        given_codes.read(written(tmp_path, captions=np.array(["a"] * N, object)))
    with pytest.raises(DataError, match="gone.npz does not exist"):
        given_codes.read(tmp_path / "gone.npz")


def test_one_depth_needs_no_axis(tmp_path):
    given = given_codes.read(written(tmp_path, codes=arrays()["codes"][..., 0]))
    assert given.codes.shape == (N, 4, 4, 1)
    np.testing.assert_array_equal(given.codes[..., 0], arrays()["codes"][..., 0])


def test_the_splits_are_fixed_and_complete(tmp_path):
    given, data = given_codes.read(written(tmp_path)), load("codes").data
    data.holdout = 10
    found = given.splits(data)
    assert {name: len(x) for name, x in found.items()} == {
        "train": 20,
        "validation": 10,
    }
    assert sorted(np.concatenate(list(found.values()))) == list(range(N))
    data.holdout = N
    with pytest.raises(DataError, match="set --config.data.holdout to less"):
        given.splits(data)


# The config


@pytest.mark.parametrize(
    ("changes", "condition", "classes"),
    [
        ({}, "class", 3),
        ({"labels": None}, "none", 0),
        ({"captions": np.array(["a red dot", "two"] * 15)}, "text", 0),
        ({"captions": np.array(["a"] + [""] * (N - 1))}, "class", 3),
    ],
)
def test_the_config_follows_from_the_file(tmp_path, changes, condition, classes):
    config = resolved(tiny(written(tmp_path, **changes)))
    validate(config)
    model = config.rqvae.model
    assert (model.code_shape, model.num_codes, model.embed_dim) == (SHAPE, (16,), 4)
    assert model.shared_codebook
    found = config.transformer.condition, config.data.num_classes
    assert found == (condition, classes)


def test_any_grid_is_possible(tmp_path):
    """Also one that no feature map of ours would have."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 5, (N, 1, 7, 3))
    file = written(tmp_path, codes=codes, codebook=rng.normal(size=(3, 5, 6)))
    model = resolved(tiny(file)).rqvae.model
    assert model.code_shape == (1, 7, 3) and not model.shared_codebook


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer.loss.soft_targets": True}, "set .*loss.soft_targets=False$"),
        ({"transformer.condition": "text"}, "'text': no captions in "),
        ({"data.num_classes": 2}, "within 0..2, but data.num_classes is 2"),
        ({"transformer.batch_size": 24}, "transformer.batch_size=20 or less"),
        ({"data.holdout": 30}, "data.holdout to less"),
    ],
)
def test_a_config_that_asks_for_more_is_refused(tmp_path, changes, message):
    with pytest.raises((ConfigError, DataError), match=message):
        resolved(tiny(written(tmp_path), changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": ("rqvae", "codes", "transformer")}, "stages = .*no images"),
        ({"transformer.online": True}, "online = True: there are no images"),
        ({"codes.variants": 2}, "codes.variants = 2: there are no images"),
    ],
)
def test_images_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny("FILE", changes)


# The whole program


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """A run on the codes and latents of the tiny run, and the file of them."""
    folder = tmp_path_factory.mktemp("own_codes")
    experiment = Experiment(trained)
    source = experiment.code_source("validation")
    rows = [source[i] for i in range(len(source))]
    codebook = experiment.rqvae_variables["codebook"]["state"].embedding
    np.savez(
        folder / "codes.npz",
        codes=np.stack([row["codes"] for row in rows]).astype(np.uint16),
        features=np.stack([row["features"] for row in rows]),
        labels=np.array([row["label"] for row in rows], np.int64),
        codebook=np.asarray(codebook),
    )
    changes = {"data.holdout": 50, "transformer.loss.soft_targets": True}
    changes["transformer.loss.stochastic_codes"] = True
    train.run_stages(tiny(folder / "codes.npz", changes), folder / "run")
    return folder / "run", folder / "codes.npz"


@pytest.mark.slow
def test_stage_2_is_trained_and_measured(run, capsys):
    path, file = run
    config = from_json((path / "config.json").read_text())
    assert config.transformer.condition == "class" and config.data.num_classes == 10
    metrics = json.loads((path / "samples/evaluation.json").read_text())
    assert metrics["transformer/cross_entropy"] > 0
    assert not [name for name in metrics if name.startswith("rqvae")]
    model, _ = checkpoint.load_model(path / "transformer", "transformer")
    with np.load(file) as given:
        np.testing.assert_array_equal(
            model["codebook"]["state"].embedding, given["codebook"]
        )
        source = Experiment(path).code_source("train")
        assert len(source) == len(given["codes"]) - 50
    program.main(["evaluate", str(path), "--config.transformer.batch_size=16"])
    printed = json.loads(capsys.readouterr().out)
    assert printed == pytest.approx(metrics, rel=1e-5)


@pytest.mark.slow
def test_samples_are_codes(run, capsys, tmp_path):
    path, file = run
    file.rename(tmp_path / "moved.npz")  # it is not needed any more
    program.main(["sample", str(path), "--num_samples=4", "--classes=3,7"])
    assert "codes without images, for your own decoder" in capsys.readouterr().out
    with np.load(path / "samples/generated.npz") as found:
        assert sorted(found) == ["codes", "labels"]
        assert found["codes"].shape == (4, *SHAPE) and found["codes"].max() < SIZE
        np.testing.assert_array_equal(found["labels"], [3, 3, 7, 7])
    complete = f"--complete={path / 'samples/generated.npz'}"
    out = f"--out={tmp_path / 'more.npz'}"
    program.main(["sample", str(path), "--num_samples=2", complete, out])
    (tmp_path / "moved.npz").rename(file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["reconstruct", "RUN"], "rq reconstruct"),
        (["rank", "RUN", "--images=x"], "rq rank"),
        (["encode", "RUN"], "rq encode"),
        (["evaluate", "RUN", "--num_samples=4"], "--num_samples"),
        (["evaluate", "RUN", "--images=x"], "--images"),
        (["sample", "RUN", "--keep=0.5"], "--keep"),
        (["sample", "RUN", "--out=a.png"], "--out=a.png"),
    ],
)
def test_what_needs_an_rqvae_is_refused(run, capsys, args, what):
    args = [str(run[0]) if x == "RUN" else x for x in args]
    with pytest.raises(SystemExit) as end:
        program.main(args)
    assert end.value.code == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "error: " in x]
    assert f"no RQ-VAE, which {what} needs" in line
    with pytest.raises(ConfigError, match="no RQ-VAE, which rq.load needs"):
        rq.load(run[0])


@pytest.mark.slow
def test_captions_without_features_are_enough(tmp_path):
    """And codebooks for each depth, on a grid that no feature map has."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 5, (N, 1, 7, 3))
    captions = np.array([f"picture {k}" for k in range(N)])
    file = written(
        tmp_path, codes=codes, codebook=rng.normal(size=(3, 5, 6)), captions=captions
    )
    train.run_stages(tiny(file), tmp_path / "run")
    experiment = Experiment(tmp_path / "run")
    assert experiment.tokenizer.vocab_size <= 300
    example, lines = experiment.code_source("validation").read(0)
    index = int(lines[0].split()[-1])
    np.testing.assert_array_equal(example["codes"], codes[index])
    out = tmp_path / "out.npz"
    program.main(
        ["sample", str(tmp_path / "run"), "--text=picture 3", f"--out={out}"]
        + ["--num_samples=3"]
    )
    with np.load(out) as found:
        assert found["codes"].shape == (3, 1, 7, 3)
