# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests of `rq compress` and `rq decompress`: exact codes, small and checked files."""

import math
import sys

import jax
import numpy as np
import pytest
from authors_test import small_config, weights, write_pair, write_tokenizer
from PIL import Image

import rq
from rq.cli import program
from rq.compression import entropy, file_format
from rq.compression.compressor import Compressor
from rq.compression.file_format import CodeFile
from rq.config import ConfigError
from rq.convert import saved_folder
from rq.data import DataError, text
from rq.models.build import rqvae_model, transformer_model
from rq.sampling import likelihood
from rq.sampling.code_steps import CodeSteps

INFO = {"steps": {"rqvae": 3, "transformer": 5}, "metrics": {}, "licence": "MIT"}
# Bytes of a file that are not codes: magic, version, digest, depth, a class, then the
# length and a checksum, and the checksum within the codes.
HEADER, STREAM = 3 + 1 + 4 + 1 + 2, 1 + 2 + 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model with random weights, by class; 4 x 4 x 2 codes of 8."""
    config = small_config("class")
    config.transformer.condition_dropout = 0.1
    variables = {
        "rqvae": weights(rqvae_model(config)),
        "transformer": weights(transformer_model(config)),
    }
    path = tmp_path_factory.mktemp("compression") / "model"
    path.mkdir()
    saved_folder.write(path, config, variables, INFO, None)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return rq.load(folder)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 20, 24, 1), np.uint8)


@pytest.fixture(scope="module")
def layered(model, images):
    """A file with layers."""
    return model.compress(images[0], layers=True)[0]


def probabilities(number, size, spread=4):
    logits = np.random.default_rng(size).normal(size=(number, size)) * spread
    found = np.exp(logits - logits.max(-1, keepdims=True))
    return (found / found.sum(-1, keepdims=True)).astype(np.float32)


# Entropy coding


@pytest.mark.parametrize("number, size", [(0, 2), (5, 3), (256, 64), (64, 16384)])
def test_codes_come_back_from_as_many_bits_as_they_have_information(number, size):
    given = probabilities(number, size)
    rng = np.random.default_rng(1)
    codes = np.array([rng.choice(size, p=p / p.sum()) for p in given.astype(float)])
    codes = codes.astype(np.int32)
    data = entropy.encode(codes, given)
    bits = -np.log2(given[np.arange(number), codes].astype(float)).sum()
    assert bits <= 8 * len(data) < bits * 1.002 + 32 + 8
    decoder = entropy.Decoder(data)
    assert [decoder.decode(p) for p in given] == codes.tolist()
    assert decoder.is_exact()


def test_unlikely_and_impossible_codes_are_written_too():
    given = np.array([[1, 0, 0], [1 - 1e-30, 1e-30, 0]], np.float32)
    decoder = entropy.Decoder(entropy.encode(np.array([2, 1], np.int32), given))
    assert [decoder.decode(p) for p in given] == [2, 1] and decoder.is_exact()


def test_probabilities_that_differ_by_a_thousandth_of_a_percent_are_found():
    given = probabilities(64, 16)
    codes = given.argmax(-1).astype(np.int32)
    data = entropy.encode(codes, given)
    other = given.copy()
    other[3, :4] *= 1.00001
    decoder = entropy.Decoder(data)
    for p in other:
        decoder.decode(p)
    assert not decoder.is_exact()


def test_a_missing_library_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(ConfigError, match=r"pip install 'rq\[compress\]'"):
        entropy.encode(np.zeros(1, np.int32), np.ones((1, 2), np.float32))


# Files


@pytest.mark.parametrize(
    "content",
    [
        CodeFile(b"abcd", 4, False, (), (b"12",)),
        CodeFile(b"abcd", 4, False, (300, 0, 70000), (b"",)),
        CodeFile(b"abcd", 3, True, (7,), (b"1" * 200, b"", b"3")),
    ],
    ids=["one stream", "tokens", "layers"],
)
def test_files_are_read_as_they_were_written(content):
    assert file_format.unpack(file_format.pack(content)) == content


def test_tokens_are_stored_up_to_the_first_of_the_last_ones():
    assert file_format.shorten(np.array([5, 2, 2, 0, 0, 0])) == (5, 2, 2, 0)
    assert file_format.shorten([0, 0]) == (0,)


def test_every_cut_and_every_changed_byte_is_found(layered):
    whole = file_format.unpack(layered)
    ends = [len(file_format.cut(layered, depth)) for depth in (1, 2)]
    assert ends[-1] == len(layered)
    for end in range(len(layered)):
        if end < ends[0]:
            with pytest.raises(DataError, match="is cut|is no file"):
                file_format.unpack(layered[:end])
            continue
        found = file_format.unpack(layered[:end])
        assert found.streams == whole.streams[:1] and found.is_cut == (end > ends[0])
    for at in range(len(layered)):
        for bit in range(8):
            data = bytearray(layered)
            data[at] ^= 1 << bit
            try:
                found = file_format.unpack(bytes(data))
            except DataError as error:
                assert "\n" not in str(error)
            else:  # a longer length of the last layer looks like a cut
                assert found.is_cut and found.streams == whole.streams[:1]
    with pytest.raises(DataError, match="damaged"):
        file_format.unpack(layered + b"\0")


def test_a_damaged_layer_matters_only_where_it_is_read(layered):
    first = file_format.cut(layered, 1)
    damaged = bytearray(layered)
    damaged[-1] ^= 1
    found = file_format.unpack(bytes(damaged), 1)
    assert found.streams == file_format.unpack(layered).streams[:1]
    assert file_format.cut(bytes(damaged), 1) == first
    for depth in (2, 3, None):
        with pytest.raises(DataError, match="damaged"):
            file_format.unpack(bytes(damaged), depth)


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_no_file(seed):
    noise = np.random.default_rng(seed).bytes(100)
    for data in (noise, b"RQC" + noise, b"RQC\1" + noise):
        with pytest.raises(DataError):
            file_format.unpack(data)


# The model


@pytest.mark.parametrize("layers", [False, True])
def test_codes_come_back_exactly(model, images, layers):
    files = model.compress(images, classes=[0, 1, 2], layers=layers)
    compressor, codes = Compressor(model.models), model.encode(images)
    for data, expected in zip(files, codes, strict=True):
        np.testing.assert_array_equal(compressor.decompress(data), expected)
    shown = model.decompress(files)
    np.testing.assert_array_equal(shown, model.reconstruct(images))
    np.testing.assert_array_equal(
        model.decompress(files, depth=1), model.reconstruct(images, depth=1)
    )


def test_one_file_needs_no_list(model, images, tmp_path):
    file = model.compress(images[:1])[0]
    expected = model.decompress([file])
    (tmp_path / "a.rqc").write_bytes(file)
    for given in (file, bytearray(file), tmp_path / "a.rqc", str(tmp_path / "a.rqc")):
        np.testing.assert_array_equal(model.decompress(given), expected)


def test_sizes_are_those_of_the_likelihood(model, images):
    made = list(model.compress_each(images, classes=1))
    expected = -model.log_likelihood(images, classes=1)[:, 0] / math.log(2)
    np.testing.assert_allclose([sum(one.bits) for one in made], expected, rtol=1e-4)
    for one in made:
        bits = 8 * (len(one.data) - HEADER - STREAM)
        assert abs(bits - sum(one.bits)) < 9


def test_layers_are_coded_by_the_likelihood_of_their_depths(model, images):
    codes, variables = model.encode(images[0]), model.models.transformer_variables
    codebook = variables["codebook"]["state"].embedding
    (made,) = model.compress_each(images[0], classes=1, layers=True)
    for depth, bits in enumerate(made.bits, 1):
        found = likelihood.log_likelihood(
            model.models.decoder,
            variables["params"],
            codebook,
            codes[..., :depth],
            np.array([1]),
        )
        expected = -found[..., -1].sum() / math.log(2)
        np.testing.assert_allclose(bits, expected, rtol=1e-4)


def test_layers_are_cut_without_the_model(model, images, layered):
    first = file_format.cut(layered, 1)
    assert layered.startswith(first)
    codes = model.encode(images[0])
    found = Compressor(model.models).decompress(first)
    np.testing.assert_array_equal(found, codes[0, ..., :1])
    np.testing.assert_array_equal(
        model.decompress([first]), model.decode(codes, depth=1)
    )
    # Depth 1 is coded as in a file of depth 1: the body reads nothing deeper.
    (shallow,) = model.compress_each(images[0], depth=1)
    assert file_format.unpack(shallow.data).streams == file_format.unpack(first).streams


def test_a_text_is_stored_as_its_tokens(tmp_path):
    folder = write_pair(small_config("text"), tmp_path / "pair")
    write_tokenizer(folder / text.FILE)
    model = rq.load(folder)
    image = np.zeros((8, 8), np.uint8)
    (data,) = model.compress(image, texts="a green star")
    tokens = file_format.unpack(data).condition
    assert tokens == file_format.shorten(model.models.tokenizer("a green star"))
    np.testing.assert_array_equal(model.decompress([data]), model.reconstruct(image))
    with pytest.raises(ConfigError, match="was not trained without"):
        model.compress(image)


def test_a_text_without_its_class_is_refused_where_the_model_takes_none(tmp_path):
    folder = write_pair(small_config("class_text"), tmp_path / "pair")
    write_tokenizer(folder / text.FILE)
    model = rq.load(folder)
    for images in (np.zeros((1, 8, 8, 1)), np.zeros((3, 8, 8, 1))):
        with pytest.raises(ConfigError, match="give the class, too"):
            model.compress(images, texts="a green star")


def test_models_of_any_order_are_read_in_raster_order(tmp_path, images):
    config = small_config()
    config.transformer.order = "random"
    variables = {
        "rqvae": weights(rqvae_model(config)),
        "transformer": weights(transformer_model(config)),
    }
    saved_folder.write(tmp_path, config, variables, INFO, None)
    model = rq.load(tmp_path)
    (made,) = model.compress_each(images[0])
    expected = -model.log_likelihood(images[0]) / math.log(2)
    np.testing.assert_allclose(sum(made.bits), expected[0, 0], rtol=1e-4)
    shown = model.decompress([made.data])
    np.testing.assert_array_equal(shown, model.reconstruct(images[0]))


def test_another_model_and_another_dtype_are_refused(model, folder, images, tmp_path):
    (data,) = model.compress(images[0])
    with pytest.raises(DataError, match="with another model than .*another dtype"):
        rq.load(folder, dtype="bfloat16").decompress([data])
    other = write_pair(small_config("class"), tmp_path / "other")
    with pytest.raises(DataError, match="file 0 was written with another model"):
        rq.load(other).decompress([data])


def test_other_floats_are_found(model, images):
    (data,) = model.compress(images[0])
    compressor, variables = Compressor(model.models), model.models.transformer_variables
    codebook = variables["codebook"]["state"].embedding * 1.01
    compressor._steps = CodeSteps(model.models.decoder, variables["params"], codebook)
    with pytest.raises(DataError, match="decodes to other codes than were written"):
        compressor.decompress(data)


def test_weights_that_have_diverged_are_one_clear_line(model, images):
    compressor, variables = Compressor(model.models), model.models.transformer_variables
    params = jax.tree.map(lambda x: x * np.nan, variables["params"])
    codebook = variables["codebook"]["state"].embedding
    compressor._steps = CodeSteps(model.models.decoder, params, codebook)
    with pytest.raises(ConfigError, match="not finite"):
        compressor.compress(model.encode(images)[0], np.int32(0), 2, False)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m, x, f: m.compress(x, depth=3), "depth 3 is not within 1..2"),
        (lambda m, x, f: m.compress(x, depth=1.5), "depth 1.5"),
        (lambda m, x, f: m.compress(x, classes=[1, 2]), "2 conditions for 3 images"),
        (lambda m, x, f: m.compress(x, classes=[9]), "the model has 0..2"),
        (lambda m, x, f: m.compress([]), "no images were given"),
        (lambda m, x, f: m.decompress([]), "no files were given"),
        (lambda m, x, f: m.decompress([f], depth=3), "file 0 has depths 1..2, not 3"),
        (lambda m, x, f: m.decompress([f, f[:-1]]), "file 1 is cut within depth 2"),
        (lambda m, x, f: m.decompress([b""]), "file 0 is no file of rq compress"),
        (lambda m, x, f: m.decompress([f[:3] + b"\2" + f[4:]]), "file 0 has format 2"),
    ],
)
def test_bad_input_is_one_clear_line(model, images, layered, call, message):
    with pytest.raises(ValueError, match=message) as info:
        call(model, images, layered)
    assert "\n" not in str(info.value)


# The commands


def test_files_are_written_beside_images_and_images_beside_files(
    folder, images, tmp_path, capsys
):
    for name in ("a", "b"):
        Image.fromarray(images[0, ..., 0]).save(tmp_path / f"{name}.png")
    paths = [str(tmp_path / f"{name}.png") for name in ("a", "b")]
    program.main(["compress", *paths, f"--model={folder}", "--classes=2", "--layers"])
    assert f"{tmp_path}/a.rqc: " in capsys.readouterr().out
    program.main(["compress", str(tmp_path / "a.rqc"), "--depth=1"])
    files = [str(tmp_path / name) for name in ("a.rqc", "a.1.rqc", "b.rqc")]
    program.main(["decompress", *files, f"--model={folder}", f"--out={tmp_path}/out"])
    model, written = rq.load(folder), sorted((tmp_path / "out").iterdir())
    assert [path.name for path in written] == ["a.1.rqc.png", "a.rqc.png", "b.rqc.png"]
    for path, depth in zip(written, (1, 2, 2), strict=True):
        np.testing.assert_array_equal(
            np.asarray(Image.open(path))[..., None],
            model.reconstruct(images[0], depth)[0],
        )


@pytest.mark.parametrize(
    "args, message",
    [
        (["compress", "--model=digits"], "rq compress needs files"),
        (["compress", "a.png"], "rq compress needs --model=MODEL"),
        (["compress", "missing.png", "--model=digits"], "there is no such file"),
        (["compress", "a.png", "a.jpg", "--model=digits"], "written to one"),
        (["compress", "a.png", "a.rqc", "--model=digits"], "one of both"),
        (["compress", "a.png", "--model=digits", "--classes=1,2"], "give one class"),
        (["compress", "a.rqc"], "give --depth=N"),
        (["compress", "a.rqc", "--depth=1", "--model=digits"], "--model is for images"),
        (["compress", "a.rqc", "--depth=1", "--dtype=int8"], "--dtype is for images"),
        (["decompress"], "rq decompress needs files"),
        (["decompress", "missing.rqc", "--model=digits"], "missing.rqc"),
    ],
)
def test_errors_of_the_commands_are_one_line(args, message, capsys):
    with pytest.raises(SystemExit) as info:
        program.main(args)
    error = capsys.readouterr().err.strip()
    assert info.value.code == 1 and message in error.splitlines()[-1]
    assert error.count("error:") == 1
