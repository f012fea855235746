# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests that the ResNet of rejection sampling matches torchvision's."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rq.cli import program
from rq.convert import resnet_weights
from rq.data import DataError
from rq.models.networks.resnet import ResNet, preprocess

FOLDER = pathlib.Path(__file__).parent / "torchvision"
_spec = importlib.util.spec_from_file_location("make", FOLDER / "make.py")
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)


def golden(name):
    """Returns the shapes of a network's state dict, and torchvision's logits."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return json.loads(str(file["shapes"])), file["logits"]


@pytest.mark.parametrize("name", make.NETWORKS)
def test_logits_are_torchvisions(name):
    shapes, expected = golden(name)
    model, params = resnet_weights.from_torch(make.weights(shapes))
    assert model == ResNet(
        tuple(make.NETWORKS[name]), name == "bottleneck", make.CLASSES
    )
    for size, logits in zip(make.SIZES, expected, strict=True):
        images = preprocess(jnp.asarray(make.images(size)))
        found = jax.jit(model.apply)({"params": params}, images)
        np.testing.assert_allclose(found, logits, 0, 1e-4 * np.abs(logits).max())


def test_resnet_101_has_its_parameters():
    """44,549,160 in torchvision, with 52,672 + 52,672 in batch norms."""
    model = ResNet((3, 4, 23, 3), True, 1000)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))[
        "params"
    ]
    # The scale of a norm is folded into the kernel before it, its shift into the bias.
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 44_549_160 - 52_672


def test_grey_images_become_three_equal_channels():
    grey = jnp.linspace(-1, 1, 256 * 256).reshape(1, 256, 256, 1)
    np.testing.assert_array_equal(preprocess(grey), preprocess(jnp.tile(grey, 3)))


@pytest.mark.parametrize(
    "change, match",
    [
        ({"layer2.0.conv1.weight": None}, "no 'layer2.0.conv1.weight'"),
        ({"layer3.0.downsample.0.weight": np.zeros((2, 2, 1, 1))}, "downsample"),
        ({"fc.weight": np.zeros((10, 7))}, "fc.weight has shape"),
    ],
)
def test_wrong_weights_are_named(change, match):
    state = make.weights(golden("basic")[0]) | change
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(ValueError, match=match):
        resnet_weights.from_torch(state)


def test_a_saved_file_can_be_read_back(tmp_path, monkeypatch, capsys):
    state = make.weights(golden("basic")[0])
    monkeypatch.setattr(resnet_weights, "read_torch_file", {"resnet.pth": state}.get)
    out = tmp_path / "resnet.npz"
    program.main(["convert", "resnet", "--weights=resnet.pth", f"--out={out}"])
    assert f"wrote {out}" in capsys.readouterr().out
    model, params = resnet_weights.load(out)
    expected_model, expected = resnet_weights.from_torch(state)
    assert model == expected_model
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_missing_or_other_files_name_the_command(tmp_path):
    other, text = tmp_path / "other.npz", tmp_path / "text.npz"
    np.savez(other, a=np.zeros(3))
    text.write_text("hello")
    for path in (tmp_path / "none.npz", other, text):
        with pytest.raises(DataError, match="rq convert resnet"):
            resnet_weights.load(path)
    with pytest.raises(SystemExit):
        program.main(["convert", "resnet", f"--weights={text}", "--out=x.npy"])
