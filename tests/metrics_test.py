# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Metrics of generated images: the field's numbers, from features and from images."""

import importlib.util
import json
import pathlib

import hypothesis
import jax
import numpy as np
import pytest
import scipy.linalg
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from rq.convert import __main__ as command
from rq.convert import inception as converter
from rq.data import DataError
from rq.evaluation import distances, manifold, statistics
from rq.models.inception import Inception, preprocess, resize_bilinear_tf1

TESTS = pathlib.Path(__file__).parent
GOLDEN = TESTS / "golden"
_spec = importlib.util.spec_from_file_location("make", TESTS / "torch_fidelity/make.py")
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)


@pytest.fixture(scope="module")
def library():
    """What torch-fidelity says."""
    with np.load(TESTS / "torch_fidelity/expected.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def figures(library):
    return json.loads(str(library["metrics"]))


@pytest.fixture(scope="module")
def state(library):
    return make.weights(json.loads(str(library["shapes"])))


def frechet(a, b):
    a, b = statistics.of(a), statistics.of(b)
    return distances.frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def test_frechet_distance_is_the_golden_one():
    with np.load(GOLDEN / "metrics_fid.npz") as golden:
        x, y = golden["in/x"], golden["in/y"]
        found = statistics.of(x)
        np.testing.assert_allclose(found.mean, golden["out/mu_x"], atol=1e-5)
        np.testing.assert_allclose(found.covariance, golden["out/sigma_x"], atol=1e-5)
        assert frechet(x, y).value == pytest.approx(float(golden["out/fid"]), rel=1e-5)
        assert frechet(x, x).value == pytest.approx(0, abs=1e-9)
        few = json.loads(str(golden["config"]))["singular_n"]
        singular = frechet(x[:few], y[:few])
        expected = float(golden["out/fid_singular"])
        assert singular.value == pytest.approx(expected, rel=1e-3)
        assert singular.condition == np.inf and 1 < frechet(x, y).condition < 1e6


def test_inception_score_is_the_golden_one():
    with np.load(GOLDEN / "metrics_is.npz") as golden:
        for splits in json.loads(str(golden["config"]))["splits"]:
            found = distances.inception_score(golden["in/logits"], splits)
            mean, std = (float(golden[f"out/is_{k}_{splits}"]) for k in ("mean", "std"))
            assert found.mean == pytest.approx(mean, rel=1e-5)
            assert found.std == pytest.approx(std, rel=1e-4)


def test_figures_are_torch_fidelitys_to_the_printed_digit(figures):
    made, real = make.features()
    fid = frechet(made, real).value
    assert fid == pytest.approx(figures["frechet_inception_distance"], rel=1e-6)
    kid = distances.kernel_distance(made, real)
    assert kid.mean == pytest.approx(figures["kernel_inception_distance_mean"], 1e-5)
    assert kid.std == pytest.approx(figures["kernel_inception_distance_std"], 1e-4)
    score = distances.inception_score(make.logits(), ddof=0)
    assert score.mean == pytest.approx(figures["inception_score_mean"], rel=1e-6)
    assert score.std == pytest.approx(figures["inception_score_std"], rel=1e-6)
    found = manifold.manifold(made, real)
    assert found.precision == pytest.approx(figures["precision"], abs=1e-6)
    assert found.recall == pytest.approx(figures["recall"], abs=1e-6)


@hypothesis.settings(deadline=None, max_examples=20)
@hypothesis.given(st.integers(0, 1000), st.integers(2, 9), st.integers(12, 40))
def test_frechet_distance_is_pytorch_fids_formula(seed, width, number):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(number, width)), rng.normal(1, 2, size=(number, width))
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2)
    expected += np.trace(first) + np.trace(second) - 2 * np.trace(root.real)
    assert frechet(a, b).value == pytest.approx(expected, rel=1e-8)
    assert frechet(b, a).value == pytest.approx(expected, rel=1e-8)


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 1000)
)
def test_streamed_moments_are_those_of_all_at_once(sizes, seed):
    hypothesis.assume(sum(sizes) >= 2)
    rng = np.random.default_rng(seed)
    parts = [rng.normal(1000, 1, (size, 5)).astype(np.float32) for size in sizes]
    found = statistics.of(parts[0])
    for part in parts[1:]:
        found = statistics.merge(found, statistics.of(part))
    whole = np.concatenate(parts).astype(np.float64)
    assert found.number == len(whole)
    np.testing.assert_allclose(found.mean, whole.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(whole.T), rtol=1e-6, atol=1e-9)


def test_statistics_go_through_pytorch_fids_file(tmp_path):
    found = statistics.of(make.features()[0])
    statistics.save(tmp_path / "a.npz", found, source="here")
    again = statistics.load(tmp_path / "a.npz")
    assert again.number == found.number
    np.testing.assert_allclose(again.covariance, found.covariance, rtol=1e-12)
    np.savez(tmp_path / "b.npz", mu=found.mean, sigma=found.covariance)  # theirs
    theirs = statistics.load(tmp_path / "b.npz")
    np.testing.assert_array_equal(theirs.covariance, found.covariance)
    np.savez(tmp_path / "c.npz", x=1)
    with pytest.raises(DataError, match="no 'mu' and 'sigma'"):
        statistics.load(tmp_path / "c.npz")
    with pytest.raises(DataError, match="does not exist"):
        statistics.load(tmp_path / "d.npz")


def brute_manifold(made, real):
    """By scikit-learn's neighbours and every distance."""

    def radii(x, k):
        return NearestNeighbors(n_neighbors=k + 1).fit(x).kneighbors(x)[0][:, -1]

    apart = np.linalg.norm(made[:, None] - real[None], axis=-1)
    wide = apart < radii(real, 5)
    return (
        np.mean((apart <= radii(real, 3)).any(1)),
        np.mean((apart <= radii(made, 3)[:, None]).any(0)),
        np.mean(wide.sum(1)) / 5,
        np.mean(wide.any(0)),
    )


@hypothesis.settings(deadline=None, max_examples=20)
@hypothesis.given(st.integers(0, 10_000), st.sampled_from([3, 7, 16, 1000]))
def test_manifolds_are_those_of_all_distances_whatever_the_block(seed, block):
    rng = np.random.default_rng(seed)
    made = rng.normal(0.5, 1, (rng.integers(7, 40), 4))
    real = rng.normal(0, 1.5, (rng.integers(7, 40), 4))
    found = manifold.manifold(made, real, block)
    np.testing.assert_allclose(found, brute_manifold(made, real), atol=1e-9)


def test_the_same_images_are_all_in_place():
    made, _ = make.features()
    found = manifold.manifold(made, made)
    assert found.precision == found.recall == found.coverage == 1


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: distances.kernel_distance(x, x), "subsets of 1000"),
        (lambda x: distances.inception_score(x[:4]), "10 parts of 4"),
        (lambda x: manifold.manifold(x[:5], x), "5 and 20 images"),
        (lambda x: statistics.of(x[:1]).covariance, "covariance of 1"),
        (lambda x: frechet(x, x[:, :2]), "means"),
        (lambda x: frechet(x, x * np.nan), "not finite"),
    ],
)
def test_what_cannot_be_measured_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0).normal(size=(20, 3)))


@pytest.fixture(scope="module")
def network(state):
    params = converter.from_torch(state)
    apply = jax.jit(lambda images: Inception().apply({"params": params}, images))
    return lambda images: apply(preprocess(images))


@pytest.mark.parametrize("height, width", make.SIZES)
def test_inceptions_features_are_torch_fidelitys(network, library, height, width):
    """With seeded random weights; resized as TensorFlow 1 did, or not at all."""
    found = network(make.images(height, width))
    assert found.pool.shape == (2, 2048) and found.spatial.shape == (2, 2023)
    for name in ("pool", "logits", "spatial"):
        expected = library[f"{name}_{height}"]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(getattr(found, name), expected, 0, 2e-5 * scale)


def test_inception_has_its_parameters():
    """torchvision's 23,834,568 less the 2,049,000 of its classes."""
    shapes = converter._shapes()
    convs = sum(np.prod(s) for n, s in shapes.items() if not n.startswith("fc"))
    norms = sum(s[-1] for n, s in shapes.items() if n.endswith("bias"))
    assert convs + norms == 23_834_568 - 2_049_000
    assert shapes["fc/kernel"] == (2048, 1008)


def test_an_image_resized_moves_to_the_lower_right():
    """TensorFlow 1's corners, by hand: pixel i of 4 looks at i / 2 of 2."""
    row = np.array([0.0, 8.0]).reshape(1, 1, 2, 1)
    image = np.repeat(row, 2, axis=1)
    found = resize_bilinear_tf1(image.astype(np.float32), 4)
    np.testing.assert_array_equal(found[0, 0, :, 0], [0, 4, 8, 8])


@pytest.mark.parametrize(
    "change, match",
    [
        ({"Mixed_5b.branch1x1.conv.weight": None}, "no 'Mixed_5b.branch1x1.conv"),
        ({"fc.weight": np.zeros((1000, 2048))}, "fc.weight"),
    ],
)
def test_wrong_weights_are_named(state, change, match):
    changed = {k: v for k, v in (state | change).items() if v is not None}
    with pytest.raises(ValueError, match=match):
        converter.from_torch(changed)


def test_weights_there_and_back(state, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(converter, "read_torch_file", {"weights.pth": state}.get)
    out = tmp_path / "inception.npz"
    command.main(["inception", "--weights=weights.pth", f"--out={out}"])
    assert f"wrote {out}" in capsys.readouterr().out
    jax.tree.map(
        np.testing.assert_array_equal, converter.load(out), converter.from_torch(state)
    )
    with pytest.raises(DataError, match="rq.convert inception"):
        converter.load(tmp_path / "no.npz")
    np.savez(tmp_path / "other.npz", x=1)
    with pytest.raises(DataError, match="something else"):
        converter.load(tmp_path / "other.npz")
