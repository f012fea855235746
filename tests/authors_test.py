# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests that the authors' models become run directories, and runs their files."""

import functools
import json
import logging
import os
import pickle
import shutil
import tarfile
import weakref

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch_files
import yaml
from parity_test import CHECKPOINTS, FOLDER, Golden, apply, close, nchw, nhwc
from torch_files import Tensor

from rq import convert
from rq.cli import program
from rq.config import SamplingConfig, default, from_json, to_json
from rq.convert import (
    authors,
    released,
    released_config,
    safetensors_file,
    torch_file,
    torch_writer,
)
from rq.data import text
from rq.experiment import CONFIG, Experiment
from rq.models.build import rqvae_model, transformer_model
from rq.parallel import sharding
from rq.sampling import conditions
from rq.training import checkpoint

pytestmark = pytest.mark.skipif(
    not (FOLDER / CHECKPOINTS).exists(), reason="no released pair in RQ_GOLDEN_DIR"
)
PAIR = FOLDER / "ckpt"
TEXTS = ["a red circle", "two blue squares", "a green star"]


def run(*args):
    program.main(["convert", *map(str, args)])


def failing(capsys, *args) -> str:
    """Returns the line with which a command ends, and checks that it wrote nothing."""
    with pytest.raises(SystemExit) as info:
        run(*args)
    *log, line = capsys.readouterr().err.strip().splitlines()
    assert not [text for text in log if text.startswith("error: ")]
    assert info.value.code == 2 and line.startswith("error: ") and len(line) < 800
    return line


def one_device(path, **options) -> Experiment:
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    return Experiment(path, mesh, **options)


@functools.cache
def weights(module, seed=0):
    """Returns random variables of a module."""
    if hasattr(module, "resolution"):
        inputs = (jnp.zeros((1, *module.image_shape)),)
    else:
        codes = jnp.zeros((1, *module.code_shape), jnp.int32)
        inputs = (codes, None, jnp.zeros((max(module.num_codes), module.input_dim)))
    return sharding.unbox(jax.jit(module.init)(jax.random.key(seed), *inputs))


def small_config(condition="none"):
    """Returns the config of the smallest models."""
    config = default()
    config.data.update(dict(name="digits", resolution=8, channels=1))
    config.rqvae.model.update(
        dict(ch=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), z_channels=4)
    )
    config.rqvae.model.update(
        dict(embed_dim=4, code_shape=(4, 4, 2), num_codes=(8,), decay=(0.98,))
    )
    model = config.transformer.model
    model.width = 16
    for stack in (model.body, model.head):
        stack.update(dict(layers=1, heads=2))
    config.transformer.condition = condition
    config.transformer.text.update(dict(vocab_size=40, length=5))
    config.data.num_classes = 3
    config.sampling.top_k = (5,)
    return config


def write_pair(config, folder, change=lambda name, array: array):
    """Writes random models of a config as the authors do; `change` changes arrays."""
    for stage, build in (("rqvae", rqvae_model), ("transformer", transformer_model)):
        module = build(config)
        write_config(config, folder, stage)
        pairs = [(n, change(n, a)) for n, a in authors.tensors(module, weights(module))]
        torch_writer.write_torch_file(
            folder / stage / "model.pt", {authors.STATE: pairs}
        )
    return folder


def write_config(config, folder, stage):
    (folder / stage).mkdir(parents=True)
    content = released_config.to_yaml(config, stage)
    (folder / stage / "config.yaml").write_text(yaml.safe_dump(content))


# The authors' files to a run directory


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Run directories of the golden pair: plain weights, and averages in an archive."""
    place = tmp_path_factory.mktemp("converted")
    with tarfile.open(place / "pair.tar.gz", "w:gz") as archive:
        archive.add(PAIR, "anything")
    run("authors", f"--archive={PAIR}", f"--out={place / 'plain'}")
    run(
        "authors",
        f"--archive={place / 'pair.tar.gz'}",
        "--ema",
        f"--out={place / 'ema'}",
    )
    assert sorted(os.listdir(place)) == ["ema", "pair.tar.gz", "plain"]
    return place


@pytest.mark.slow
def test_a_run_directory_gives_the_authors_outputs(converted):
    golden = Golden(FOLDER / CHECKPOINTS)
    experiment = one_device(converted / "plain")
    images = nhwc(golden["in/x"])
    outputs, codes, _ = apply(experiment.rqvae, experiment.rqvae_variables, images)
    np.testing.assert_array_equal(codes, golden["out/codes"])
    close(nchw(outputs), golden["out/recon"])
    for name, folder in (("logits", "plain"), ("logits_ema", "ema")):
        experiment = one_device(converted / folder)
        variables = experiment.transformer_state.model_variables()
        codebook = variables["codebook"]["state"].embedding
        params = {"params": variables["params"]}
        cond = jnp.asarray(golden["in/cond"])
        logits = apply(experiment.transformer.model, params, codes, cond, codebook)
        close(logits, golden[f"out/{name}"])


@pytest.mark.slow
def test_commands_open_a_converted_run(converted, tmp_path, capsys):
    path = converted / "plain"
    program.main(["check", str(path)])
    assert capsys.readouterr().out.count("as they were written") == 2
    image = tmp_path / "image.png"
    shutil.copy(FOLDER.parent.parent / "docs/images/own_images.png", image)
    out = tmp_path / "out.png"
    program.main(["reconstruct", str(path), f"--images={image}", f"--out={out}"])
    flags = ["--num_samples=3", "--classes=1", f"--out={tmp_path / 'samples.npz'}"]
    program.main(["sample", str(path), *flags])
    samples = np.load(tmp_path / "samples.npz")
    assert len(samples["arr_0"]) == 3 and out.stat().st_size > 0
    config = from_json((path / CONFIG).read_text())
    assert config.sampling.top_p == (0.92,) and config.data.name == "imagenet2012"


# A run to the authors' files and back


def test_a_trained_run_survives_the_authors_format_bit_by_bit(trained, tmp_path):
    there, back = tmp_path / "there", tmp_path / "back"
    run("export", f"--workdir={trained}", "--to=authors", f"--out={there}")
    run("authors", f"--archive={there}", f"--out={back}")
    ours, again = one_device(trained), one_device(back)
    assert again.config.data.name == "digits"
    for stage in ("rqvae", "transformer"):
        models = (
            checkpoint.load_model(e.path / stage, stage)[0] for e in (ours, again)
        )
        a, b = ({k: m[k] for k in ("params", "codebook")} for m in models)
        assert jax.tree.structure(a) == jax.tree.structure(b)
        jax.tree.map(np.testing.assert_array_equal, a, b)
    asked = conditions.parse(ours.config, classes=(1, 2))
    _, cond = asked.at(asked.spread(4))
    options = SamplingConfig(**ours.config.sampling)
    read = SamplingConfig(**again.config.sampling)
    assert (read.temperature, read.top_p) == (options.temperature, options.top_p)
    found = [e.sampler.sample(cond, 4, options) for e in (ours, again)]
    np.testing.assert_array_equal(found[0].codes, found[1].codes)
    np.testing.assert_array_equal(found[0].images, found[1].images)
    for name in ("config.yaml", "model.pt"):
        assert sorted(p.parent.name for p in there.rglob(name)) == ["stage1", "stage2"]


@pytest.mark.slow
def test_safetensors_hold_the_same_arrays_and_come_back(converted, tmp_path):
    there = tmp_path / "there"
    path = converted / "plain"
    run("export", f"--workdir={path}", "--to=safetensors", f"--out={there}")
    expected = convert.read_torch_file(PAIR / "rqtransformer/model.pt")["state_dict"]
    expected = {f"transformer.{name}": array for name, array in expected.items()}
    with safetensors_file.opened(
        there / "model.safetensors", lambda size: None
    ) as found:
        kept = {n: array for n, array in found.items() if n.startswith("transformer.")}
        assert kept.keys() == expected.keys() and len(found) > len(kept)
        for name, array in kept.items():
            np.testing.assert_array_equal(array, expected[name])
    run("authors", f"--archive={there}", f"--out={tmp_path / 'back'}")
    ours, again = one_device(path), one_device(tmp_path / "back")
    assert again.finished("rqvae") and again.finished("transformer")
    a, b = ((e.rqvae_variables, e.transformer_variables) for e in (ours, again))
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_safetensors_beside_a_config_file_are_read(tmp_path):
    folder, place = write_pair(small_config("class"), tmp_path / "pair"), "transformer"
    path = folder / place / "model.pt"
    state = convert.read_torch_file(path)[authors.STATE]
    safetensors_file.write(path.with_suffix(".safetensors"), state.items())
    _, expected = convert.load(path)
    path.unlink()
    _, found = convert.load(path.with_suffix(".safetensors"))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    out = tmp_path / "run"
    run("authors", f"--archive={folder}", f"--out={out}")
    assert one_device(out).stages == ("rqvae", "transformer")


def test_moving_averages_are_exported_and_restored(tmp_path):
    module = transformer_model(small_config())
    plain, average = weights(module, 1), weights(module, 2)
    write_config(small_config(), tmp_path, "transformer")
    path = tmp_path / "transformer/model.pt"
    dicts = {authors.STATE: plain, authors.AVERAGE: average}
    torch_writer.write_torch_file(
        path, {name: authors.tensors(module, v) for name, v in dicts.items()}
    )
    for ema, expected in ((False, plain), (True, average)):
        found, variables = convert.load(path, ema=ema)
        assert found == module
        jax.tree.map(np.testing.assert_array_equal, variables, expected)


@pytest.mark.parametrize("condition", ["none", "class", "text", "class_text"])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_config_files_of_both_kinds_say_the_same(condition, dropout, tmp_path):
    config = small_config(condition)
    if condition != "none":
        config.transformer.condition_dropout = dropout
    for stage in ("rqvae", "transformer"):
        write_config(config, tmp_path, stage)
        (tmp_path / stage / "model.pt").touch()
    found = released_config.run_config(*released.find([tmp_path]))
    for name in ("condition", "condition_dropout", "model"):
        assert found.transformer[name] == config.transformer[name], name
    if "text" in condition:
        text_options = found.transformer.text
        assert (text_options.vocab_size, text_options.length) == (40, 5)
    assert found.rqvae.model == config.rqvae.model
    assert found.data.num_classes == 3 and found.sampling.top_k == (5,)
    assert from_json(to_json(found)) == found


def test_an_rqvae_alone_is_a_run_too(tmp_path):
    out = tmp_path / "run"
    run("authors", f"--archive={PAIR / 'rqvae'}", f"--out={out}")
    assert checkpoint.latest_step(out / "rqvae") == 1
    assert from_json((out / CONFIG).read_text()).stages == ("rqvae",)


def test_half_precision_and_wrapped_names_are_taken(tmp_path):
    def half(name, array):
        dtypes = np.float16, ml_dtypes.bfloat16
        return array.astype(dtypes[len(name) % 2])

    folder = write_pair(small_config("class"), tmp_path / "pair", half)
    path = folder / "transformer/model.pt"
    state = convert.read_torch_file(path)[authors.STATE]
    wrapped = {f"module.{name}": array for name, array in state.items()}
    torch_writer.write_torch_file(path, {authors.STATE: wrapped.items()})
    out = tmp_path / "run"
    run("authors", f"--archive={folder}", f"--out={out}")
    found = one_device(out).transformer_state.params
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    bias = np.asarray(state["classifier.linear.bias"], np.float32)
    np.testing.assert_array_equal(found["classifier_bias"], bias)


@pytest.mark.parametrize("given", ["beside the model", "vocabulary", "flag"])
def test_a_text_model_keeps_its_tokenizer(given, tmp_path):
    folder = write_pair(small_config("text"), tmp_path / "pair")
    files, flags = tmp_path / "files", []
    files.mkdir()
    if given == "vocabulary":  # the authors' files
        letters = sorted({c for line in TEXTS for c in line if c != " "})
        words = ["[UNK]", *letters, *(f"{c}</w>" for c in letters)]
        words = dict(zip(words[:39], range(39), strict=False))
        (folder / "bpe-16k-vocab.json").write_text(json.dumps(words))
        (folder / "bpe-16k-merges.txt").write_text("#version: 0.2\n")
        expected = text.load(folder, 5)
    else:
        expected = write_tokenizer(files / text.FILE)
    if given == "flag":
        flags = [f"--tokenizer={files / text.FILE}"]
    elif given == "beside the model":
        shutil.copy(files / text.FILE, folder / "transformer")
    out = tmp_path / "run"
    run("authors", f"--archive={folder}", *flags, f"--out={out}")
    experiment = one_device(out)
    np.testing.assert_array_equal(experiment.tokenizer(TEXTS[0]), expected(TEXTS[0]))
    back = tmp_path / "back"
    run("export", f"--workdir={out}", "--to=authors", f"--out={back}")
    assert (back / "stage2" / text.FILE).exists()


def write_tokenizer(path) -> text.TextTokenizer:
    """Writes a tokenizer of less than 40 tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = sorted({c for line in TEXTS for c in line if c != " "})
    vocabulary = {c: i for i, c in enumerate(letters)}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(path))
    return text.load(path, 5)


# Faults


@pytest.fixture
def pair(tmp_path):
    """A copy of the golden pair, to change."""
    return shutil.copytree(PAIR, tmp_path / "pair")


def edit(path, **changes):
    """Changes the `arch` section of a config.yaml."""
    config = yaml.safe_load(path.read_text())
    config["arch"] |= changes
    path.write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(
    "change, flags, message",
    [
        (lambda p: shutil.rmtree(p), [], "does not exist"),
        (lambda p: shutil.rmtree(p / "rqvae"), [], "no RQ-VAE, which the RQ-Trans"),
        (lambda p: [shutil.rmtree(f) for f in p.iterdir()], [], "no checkpoint in it"),
        (lambda p: shutil.copytree(p / "rqvae", p / "b"), [], "more than one RQ-VAE"),
        (lambda p: (p / "rqvae/config.yaml").unlink(), [], "config.yaml is missing"),
        (
            lambda p: edit(p / "rqtransformer/config.yaml", block_size=[4, 4, 9]),
            [],
            "the RQ-Transformer is not for this RQ-VAE: it has code_shape",
        ),
        (
            lambda p: edit(p / "rqtransformer/config.yaml", vocab_size=999),
            [],
            "num_codes (999,), not (",
        ),
        (
            lambda p: edit(p / "rqtransformer/config.yaml", embed_dim="wide"),
            [],
            "rqtransformer/config.yaml: ",
        ),
        (
            lambda p: edit(p / "rqvae/config.yaml", type="vqgan"),
            [],
            "arch.type 'vqgan'",
        ),
        (
            lambda p: shutil.rmtree(p / "rqtransformer"),
            ["--ema"],
            "no model has a moving average",
        ),
        (lambda p: None, ["--tokenizer=x"], "not conditioned on text"),
        (lambda p: None, ["--vgg=x"], "does not use --vgg"),
    ],
    ids=lambda x: "" if callable(x) else str(x),
)
def test_what_cannot_be_converted_is_one_line(
    pair, change, flags, message, tmp_path, capsys
):
    change(pair)
    line = failing(
        capsys, "authors", f"--archive={pair}", *flags, f"--out={tmp_path / 'run'}"
    )
    assert message in line
    assert {p.name for p in tmp_path.iterdir()} <= {"pair"}


def test_missing_and_extra_weights_are_counted_and_named(
    pair, tmp_path, capsys, caplog
):
    path = pair / "rqtransformer/model.pt"
    state = convert.read_torch_file(path)[authors.STATE]
    most = {name: state[name] for name in list(state)[5:]}
    extra = {f"extra.{k:03}": np.zeros(2, np.float32) for k in range(200)}
    flags = [f"--archive={pair}", f"--out={tmp_path / 'run'}"]
    torch_writer.write_torch_file(path, {authors.STATE: most.items()})
    assert "lacks 5 (" in (line := failing(capsys, "authors", *flags))
    assert f", ...) of {len(state)} names" in line
    torch_writer.write_torch_file(path, {authors.STATE: (state | extra).items()})
    with caplog.at_level(logging.WARNING):
        run("authors", *flags)
    assert "unused in the state dict: 200 (extra.000, extra.001" in caplog.text


def test_a_folder_that_is_taken_and_a_full_disk_are_one_line(
    pair, tmp_path, capsys, monkeypatch
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/file").touch()
    flags = [f"--archive={pair}", f"--out={tmp_path / 'run'}"]
    assert "exists: choose a new folder" in failing(capsys, "authors", *flags)

    def full(*_):
        raise ValueError("write: No space left on device")

    monkeypatch.setattr(authors, "load", full)
    flags = [f"--archive={pair}", f"--out={tmp_path / 'other'}"]
    assert "no space left on the disk" in failing(capsys, "authors", *flags)
    assert {p.name for p in tmp_path.iterdir()} == {"pair", "run"}


def test_a_text_model_without_its_tokenizer_says_what_to_give(tmp_path, capsys):
    folder = write_pair(small_config("text"), tmp_path / "pair")
    flags = [f"--archive={folder}", f"--out={tmp_path / 'run'}"]
    assert "--tokenizer=" in failing(capsys, "authors", *flags)


def test_a_malicious_pickle_runs_nothing(pair, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch_files.save(pair / "rqvae/model.pt", {"state_dict": {"w": Evil()}})
    flags = [f"--archive={pair}", f"--out={tmp_path / 'run'}"]
    assert "refusing to load posix.system" in failing(capsys, "authors", *flags)
    (pair / "rqvae/model.pt").write_bytes(pickle.dumps(Evil()))
    assert "not a file that torch.save wrote" in failing(capsys, "authors", *flags)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "change, name",
    [
        ({"rqvae.model.cosine": True}, "rqvae"),
        ({"transformer.model.body.norm": "rms"}, "body of transformer"),
        ({"transformer.model.head.qk_norm": True}, "head of transformer"),
    ],
)
def test_models_that_the_authors_code_lacks_are_not_exported(change, name):
    config = small_config()
    config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match="the authors' code has no such model"):
        for stage in ("rqvae", "transformer"):
            released_config.to_yaml(config, stage)


# PyTorch's files


def test_files_that_are_written_are_those_of_pytorch(tmp_path):
    arrays = {
        "matrix": np.arange(12, dtype=np.float32).reshape(3, 4),
        "half": np.ones(3, np.float16),
        "brain": np.ones(2, ml_dtypes.bfloat16),
        "number": np.asarray(7, np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }
    path = tmp_path / "model.pt"
    torch_writer.write_torch_file(
        path, {"a": arrays.items(), "b": iter(arrays.items())}
    )
    for found in convert.read_torch_file(path).values():
        assert list(found) == list(arrays)
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)
    torch = pytest.importorskip("torch")
    for use_mmap in (False, True):
        found = torch.load(path, weights_only=True, mmap=use_mmap)
        for name, array in arrays.items():
            tensor = found["b"][name]
            assert tuple(tensor.shape) == array.shape
            np.testing.assert_array_equal(
                tensor.float().numpy(), array.astype(np.float32)
            )


def test_arrays_are_read_one_at_a_time(tmp_path):
    """No two storages of a file are in memory at once."""
    arrays = {f"w{k}": np.full(1000, k, np.float32) for k in range(20)}
    path = tmp_path / "model.pt"
    torch_files.save(
        path,
        {
            "state_dict": {n: Tensor(a, key=n) for n, a in arrays.items()},
            "tied": [Tensor(arrays["w0"], key="x"), Tensor(arrays["w0"], key="x")],
        },
    )
    sizes = []
    with torch_file.opened(path, sizes.append) as found:
        assert not sizes  # shapes are known without reading
        before = None
        for name, lazy in found["state_dict"].items():
            assert before is None or before() is None
            array = np.asarray(lazy)
            np.testing.assert_array_equal(array, arrays[name])
            before = weakref.ref(array)
            del array
        assert sizes == [4000] * 20
        for lazy in found["tied"] * 2:  # those of one storage are read once
            np.asarray(lazy)
        assert sizes == [4000] * 21
