# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests that metrics match the reference libraries, from features and images."""

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

from rq.cli import program
from rq.convert import inception_weights as converter
from rq.convert import npz_file
from rq.data import DataError
from rq.evaluation import clip, extractors, feature_sets
from rq.metrics import distances, manifold, moments
from rq.models.networks.inception import resize_bilinear
from rq.parallel import sharding

TESTS = pathlib.Path(__file__).parent


def _module(path):
    spec = importlib.util.spec_from_file_location("make", TESTS / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = _module("libraries/make.py")


@pytest.fixture(scope="module")
def library():
    """Returns the results of torch-fidelity, pytorch-fid, clean-fid and prdc."""
    with np.load(TESTS / "libraries/expected.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def figures(library):
    return json.loads(str(library["metrics"]))


@pytest.fixture(scope="module")
def state(library):
    return make.weights(json.loads(str(library["shapes"])))


def frechet(a, b):
    a, b = moments.of(a), moments.of(b)
    return distances.frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def test_figures_are_the_libraries_to_the_printed_digit(figures):
    made, real = make.features()
    fid = frechet(made, real).value
    assert fid == pytest.approx(figures["frechet_inception_distance"], rel=1e-6)
    assert fid == pytest.approx(figures["pytorch_fid"], rel=1e-6)
    kid = distances.kernel_distance(made, real)
    assert kid.mean == pytest.approx(figures["kernel_inception_distance_mean"], 1e-5)
    assert kid.std == pytest.approx(figures["kernel_inception_distance_std"], 1e-4)
    score = distances.inception_score(make.logits(), ddof=0)
    assert score.mean == pytest.approx(figures["inception_score_mean"], rel=1e-6)
    assert score.std == pytest.approx(figures["inception_score_std"], rel=1e-6)
    found = manifold.manifold(made, real)
    assert found.precision == pytest.approx(figures["precision"], abs=1e-6)
    assert found.recall == pytest.approx(figures["recall"], abs=1e-6)
    assert found.density == pytest.approx(figures["prdc_density"], abs=1e-6)
    assert found.coverage == pytest.approx(figures["prdc_coverage"], abs=1e-6)


@pytest.mark.slow
def test_all_metrics_of_two_sets_are_the_libraries(figures):
    """The Inception score uses the images in another order."""
    made, real = (features_of(x) for x in make.features())
    made = made._replace(logits=make.logits())
    found = feature_sets.metrics(made, real, "some")
    expected = {
        "FID (some)": figures["frechet_inception_distance"],
        "sFID (some)": figures["frechet_inception_distance"],
        "KID (some)": figures["kernel_inception_distance_mean"],
        "precision (some)": figures["precision"],
        "coverage (some)": figures["prdc_coverage"],
        "IS (some)": figures["shuffled"]["inception_score_mean"],
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=2e-5), name
    few = feature_sets.metrics(
        features_of(make.features()[0][:9]), features_of(make.features()[1][:9])
    )
    assert few["FID condition"] is None and not {"KID", "IS"} & few.keys()
    json.dumps(few, allow_nan=False)


def features_of(rows):
    """Returns features whose spatial part equals the pooled one."""
    return feature_sets.collect(
        extractors.Found(part, None, part) for part in np.array_split(rows, 7)
    )


@pytest.mark.parametrize("order", [1, -1])
def test_the_inception_score_does_not_depend_on_the_order_of_classes(order):
    logits = 9 * np.eye(10)[np.repeat(np.arange(10), 50)[::order]]
    made = features_of(logits)._replace(logits=logits.astype(np.float32))
    found = feature_sets.metrics(made, made)
    assert found["IS"] > 7 and distances.inception_score(logits).mean < 1.1


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


# Rows of each set, and scales of the features: more, as many or fewer images than
# features; features of equal scale, of scales over many decades, constant.
SETS = [(200, 300), (40, 40), (41, 42), (20, 30), (2, 3), (30, 200)]
SCALES = {
    "like": np.ones(40),
    "decades": 10.0 ** np.linspace(-6, 3, 40),
    "constant": np.repeat([1.0, 0.0], 20),
}


def wide_sets(numbers, scales):
    rng = np.random.default_rng(0)
    return [
        50 + rng.normal(0.1 * k, 1 + k, (n, 40)) * scales for k, n in enumerate(numbers)
    ]


@pytest.mark.parametrize("numbers", SETS, ids=str)
@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
def test_a_set_is_at_distance_0_from_itself(numbers, scales):
    for rows in wide_sets(numbers, scales):
        assert frechet(rows, rows).value == 0
        other = np.random.default_rng(1).permutation(rows)
        assert frechet(rows, other).value == pytest.approx(0, abs=1e-9)
        assert f"{frechet(rows, other).value:.4f}" == "0.0000"
    assert frechet(np.ones((9, 3)), np.ones((9, 3))).value == 0


@pytest.mark.parametrize("numbers", SETS, ids=str)
@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)
def test_frechet_distance_of_singular_covariances_is_exact(numbers, scales):
    """Compares with the trace computed from the rows, which needs no matrix root."""
    a, b = wide_sets(numbers, scales)
    x, y = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (a, b))
    roots = np.linalg.svd(x @ y.T, compute_uv=False)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2)
    expected += np.sum(x**2) + np.sum(y**2) - 2 * np.sum(roots)
    for first, second in ((a, b), (b, a)):
        found = frechet(first, second)
        assert found.value == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert np.isinf(found.condition) == (min(numbers) <= 40 or scales[-1] != 1)


@pytest.mark.parametrize("shift, scale", [(1e-3, 1), (0, 1.0001), (1e-5, 1.00001)])
def test_small_distances_are_not_lost_in_rounding(shift, scale):
    (rows,) = wide_sets((20,), np.ones(40))
    moved = (rows - rows.mean(0)) * scale + rows.mean(0) + shift
    trace = np.trace(np.cov(rows.T))
    expected = 40 * shift**2 + trace * (scale - 1) ** 2
    assert frechet(rows, moved).value == pytest.approx(expected, rel=1e-2)


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 1000)
)
def test_streamed_moments_are_those_of_all_at_once(sizes, seed):
    hypothesis.assume(sum(sizes) >= 2)
    rng = np.random.default_rng(seed)
    parts = [rng.normal(1000, 1, (size, 5)).astype(np.float32) for size in sizes]
    found = moments.of(parts[0])
    for part in parts[1:]:
        found = moments.merge(found, moments.of(part))
    whole = np.concatenate(parts).astype(np.float64)
    assert found.number == len(whole)
    np.testing.assert_allclose(found.mean, whole.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(whole.T), rtol=1e-6, atol=1e-9)


def test_statistics_go_through_pytorch_fids_file(tmp_path):
    found = moments.of(make.features()[0])
    moments.save(tmp_path / "a.npz", found, source="here")
    again = moments.load(tmp_path / "a.npz")
    assert again.number == found.number
    np.testing.assert_allclose(again.covariance, found.covariance, rtol=1e-12)
    np.savez(tmp_path / "b.npz", mu=found.mean, sigma=found.covariance)  # theirs
    theirs = moments.load(tmp_path / "b.npz")
    np.testing.assert_array_equal(theirs.covariance, found.covariance)
    np.savez(tmp_path / "c.npz", x=1)
    with pytest.raises(DataError, match="no 'mu' and 'sigma'"):
        moments.load(tmp_path / "c.npz")
    with pytest.raises(DataError, match="does not exist"):
        moments.load(tmp_path / "d.npz")
    for mean, covariance, message in (
        (np.zeros(3), np.eye(4), "not .F. and .F, F."),
        (np.full(3, np.nan), np.eye(3), "not finite"),
    ):
        np.savez(tmp_path / "e.npz", mu=mean, sigma=covariance)
        with pytest.raises(DataError, match=message):
            moments.load(tmp_path / "e.npz")


def brute_manifold(made, real):
    """Computes the metrics from all distances and scikit-learn's neighbours."""

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
def test_manifolds_match_all_distances_for_any_block_size(seed, block):
    rng = np.random.default_rng(seed)
    made = rng.normal(0.5, 1, (rng.integers(7, 40), 4))
    real = rng.normal(0, 1.5, (rng.integers(7, 40), 4))
    found = manifold.manifold(made, real, block)
    np.testing.assert_allclose(found, brute_manifold(made, real), atol=1e-9)


def test_equal_sets_have_perfect_manifold_metrics():
    made, _ = make.features()
    found = manifold.manifold(made, made)
    assert found.precision == found.recall == found.coverage == 1


def test_density_and_coverage_leave_out_the_edge_of_a_ball_that_precision_has():
    """As in the authors' code of each; on whole numbers distances are exact."""
    real = np.arange(10.0)[:, None]
    made = np.array([[-3.0], [1e3], [2e3], [3e3], [4e3], [5e3]])
    found = manifold.manifold(made, real)
    # Real 0 has its third neighbour at 3, its fifth at 5; real 1 its fifth at 4.
    assert found.precision == pytest.approx(1 / 6)
    assert found.density == pytest.approx(1 / 5 / 6)
    assert found.coverage == pytest.approx(1 / 10)


@pytest.mark.parametrize("block", [7, 1000])
def test_manifolds_of_features_far_from_the_origin(block):
    rng = np.random.default_rng(0)
    made, real = 3000 + rng.normal(0.2, 1, (2, 60, 4)).astype(np.float32)
    found = manifold.manifold(made, real, block)
    np.testing.assert_allclose(found, brute_manifold(made, real), atol=1e-9)


def test_the_inception_score_of_large_logits_and_of_unequal_parts():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(23, 6))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    scores = []
    for part in (p[:4], p[4:9], p[9:13], p[13:18], p[18:]):  # of 4 or 5
        divergence = np.sum(part * np.log(part / part.mean(0)), axis=1)
        scores.append(np.exp(divergence.mean()))
    for shift in (0, 2000, -2000):
        found = distances.inception_score(logits + shift, splits=5)
        assert found.mean == pytest.approx(np.mean(scores), rel=1e-9)
        assert found.std == pytest.approx(np.std(scores, ddof=1), rel=1e-9)


def test_a_stream_has_the_moments_of_all_rows_in_whatever_batches(monkeypatch):
    monkeypatch.setattr(moments, "ROWS", 10)
    rows = np.random.default_rng(0).normal(5, 2, (47, 3)).astype(np.float32)
    for size in (1, 4, 10, 13, 47):
        stream = moments.Stream()
        assert stream.moments() is None
        for start in range(0, len(rows), size):
            stream.add(rows[start : start + size])
        found = stream.moments()
        assert found.number == 47
        np.testing.assert_allclose(found.mean, rows.mean(0, np.float64), rtol=1e-10)
        covariance = np.cov(rows.T.astype(np.float64))
        np.testing.assert_allclose(found.covariance, covariance, rtol=1e-9)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: distances.kernel_distance(x, x), "subsets of 1000"),
        (lambda x: distances.inception_score(x[:4]), "10 parts of 4"),
        (lambda x: manifold.manifold(x[:5], x), "5 and 20 images"),
        (lambda x: moments.of(x[:1]).covariance, "covariance of 1"),
        (lambda x: frechet(x, x[:, :2]), "means"),
        (lambda x: frechet(x, x * np.nan), "not finite"),
    ],
)
def test_invalid_inputs_of_metrics_are_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0).normal(size=(20, 3)))


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory):
    """Returns a file in the format of `rq.convert inception`."""
    path = tmp_path_factory.mktemp("inception") / "inception.npz"
    npz_file.save(path, converter.KIND, converter.from_torch(state))
    return path


@pytest.fixture(scope="module")
def networks(weights):
    """Returns the extractors by resizing method."""
    one = sharding.make_mesh(devices=jax.devices()[:1])
    return {
        name: extractors.inception(weights, one, name) for name in extractors.RESIZES
    }


def close(actual, expected, relative=2e-5):
    np.testing.assert_allclose(actual, expected, 0, relative * np.abs(expected).max())


@pytest.mark.parametrize(
    "height, width",
    [
        make.SIZES[0],
        *(pytest.param(*x, marks=pytest.mark.slow) for x in make.SIZES[1:]),
    ],
)
def test_inceptions_features_are_the_libraries(networks, library, height, width):
    """With random weights, for three resizing methods and without resizing."""
    found = networks["tf1"](make.images(height, width))
    assert found.pool.shape == (2, 2048) and found.spatial.shape == (2, 2023)
    for name in ("pool", "logits", "spatial"):  # torch-fidelity
        close(getattr(found, name), library[f"{name}_{height}"])
    found = networks["pytorch"](make.images(height, width))
    for name in ("pool", "logits"):  # pytorch-fid, with the bias
        close(getattr(found, name), library[f"pytorch_{name}_{height}"])
    found = networks["clean"](make.images(height, width))
    close(found.pool, library[f"clean_pool_{height}"])
    resized = extractors.clean_resize(make.images(height, width))
    close(resized[:, :: make.STEP, :: make.STEP], library[f"clean_{height}"], 1e-6)


def test_each_resizing_method_has_its_own_name_and_features(networks):
    names = {e.label for e in networks.values()}
    assert names == {"", "pytorch-fid", "clean-fid"}
    assert len({e.fingerprint for e in networks.values()}) == 3
    assert len({e.name for e in networks.values()}) == 3


def test_a_grey_image_is_three_equal_channels(networks):
    grey = make.images(64, 80)[..., :1]
    a, b = (networks["tf1"](x) for x in (grey, np.repeat(grey, 3, axis=-1)))
    np.testing.assert_array_equal(a.pool, b.pool)


# Frechet distances of a set from itself with another resizing method (in the docs).
RESIZED = {"pytorch": 0.0569, "clean": 3.03}


@pytest.mark.slow
def test_another_resizing_method_gives_another_distance(networks):
    """With random weights; ImageNet's give other numbers, just as reproducibly."""
    images = np.concatenate([make.images(64 + k, 80)[:, :64] for k in range(10)])
    found = {name: networks[name](images).pool for name in networks}
    for name, expected in RESIZED.items():
        value = frechet(found[name], found["tf1"]).value
        assert value == pytest.approx(expected, rel=0.01), name


def test_adms_reference_files_give_statistics_and_images(networks, tmp_path):
    """Frechet distances use the statistics, manifold metrics use the images."""
    network = networks["tf1"]
    images = np.concatenate([make.images(64, 80), make.images(64, 80)[:, ::-1]])
    rng = np.random.default_rng(0)
    known = {"mu": rng.normal(size=2048), "sigma": np.eye(2048)}
    known |= {"mu_s": rng.normal(size=2023), "sigma_s": np.eye(2023)}
    path = tmp_path / "VIRTUAL.npz"
    np.savez(path, images, **known)
    found, digest = feature_sets.reference(path, network, cache=tmp_path / "cache")
    np.testing.assert_array_equal(found.gaussian.mean, known["mu"])
    np.testing.assert_array_equal(found.spatial.covariance, known["sigma_s"])
    np.testing.assert_allclose(found.pool, network(images).pool, rtol=1e-5)
    np.savez(path, **known)  # without images
    found, other = feature_sets.reference(path, network, cache=tmp_path / "cache")
    assert found.pool is None and other != digest
    # Our own files can be read back and name their network.
    own = tmp_path / "own.npz"
    feature_sets.save(own, found, extractor=network.fingerprint)
    again, _ = feature_sets.reference(own, network)
    np.testing.assert_array_equal(again.spatial.mean, known["mu_s"])
    with pytest.raises(DataError, match="own.npz was not made with .* another netw"):
        feature_sets.reference(own, networks["clean"])
    with pytest.raises(DataError, match="of another network"):
        feature_sets.check(5, found._replace(gaussian=found.spatial), network)
    with pytest.raises(DataError, match="two images or more, not 1"):
        feature_sets.check(1, found, network)


def test_a_large_reference_is_sampled_at_random(monkeypatch):
    monkeypatch.setattr(feature_sets, "POOL", 10)
    rows = np.arange(300.0, dtype=np.float32)[:, None]
    batches = (extractors.Found(part, part, None) for part in np.array_split(rows, 9))
    found = feature_sets.collect(batches, len(rows), logits=False)
    assert found.gaussian.number == 300 and found.logits is None
    assert len(found.pool) == 10 and found.pool.base is None
    assert found.pool.max() > 150 > found.pool.min()
    np.testing.assert_array_equal(found.pool, rows[feature_sets.kept(len(rows))])
    np.testing.assert_array_equal(feature_sets.kept(7), np.arange(7))


def test_inception_has_its_parameters():
    """torchvision's 23,834,568 without the 2,049,000 of its classes."""
    shapes = converter._shapes()
    convs = sum(np.prod(s) for n, s in shapes.items() if not n.startswith("fc"))
    norms = sum(s[-1] for n, s in shapes.items() if n.endswith("/bias"))
    assert convs + norms == 23_834_568 - 2_049_000
    assert shapes["fc/kernel"] == (2048, 1008)


def test_an_image_resized_moves_to_the_lower_right():
    """As in TensorFlow 1: pixel i of 4 interpolates pixels at i / 2 of 2."""
    row = np.array([0.0, 8.0]).reshape(1, 1, 2, 1)
    image = np.repeat(row, 2, axis=1).astype(np.float32)
    found = resize_bilinear(image, 4, shift=0.0)
    np.testing.assert_array_equal(found[0, 0, :, 0], [0, 4, 8, 8])
    found = resize_bilinear(image, 4, shift=0.5)  # those of PyTorch do not
    np.testing.assert_array_equal(found[0, 0, :, 0], [0, 2, 6, 8])


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


def test_saved_weights_can_be_read_back(state, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(converter, "read_torch_file", {"weights.pth": state}.get)
    out = tmp_path / "inception.npz"
    program.main(["convert", "inception", "--weights=weights.pth", f"--out={out}"])
    assert f"wrote {out}" in capsys.readouterr().out
    jax.tree.map(
        np.testing.assert_array_equal, converter.load(out), converter.from_torch(state)
    )
    with pytest.raises(DataError, match="rq.convert inception"):
        converter.load(tmp_path / "no.npz")
    np.savez(tmp_path / "other.npz", x=1)
    with pytest.raises(DataError, match="something else"):
        converter.load(tmp_path / "other.npz")


@pytest.fixture(scope="module")
def small_clip():
    return clip.Clip(TESTS / "clip"), _module("clip/make.py")


def test_clips_cosines_are_the_librarys(small_clip):
    """Compares with transformers, for images and captions of several sizes."""
    network, makes = small_clip
    with np.load(TESTS / "clip/expected.npz") as file:
        expected = file["cosines"]
    pairs = zip(makes.images(), makes.CAPTIONS, strict=True)
    found = [network(image[None], [text])[0] for image, text in pairs]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # In one batch padded to the longest caption, and in several batches.
    image = makes.images()[0]
    alone = [float(network(image[None], [text])[0]) for text in makes.CAPTIONS]
    together = network(np.stack([image] * 3), makes.CAPTIONS)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    batches = [np.stack([image] * number) for number in (2, 3, 1)]
    score = clip.score(network, batches, makes.CAPTIONS)
    assert score == pytest.approx(np.mean(alone), abs=1e-5)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_other_files_than_clip_are_errors(tmp_path, name):
    for file in (TESTS / "clip").glob("*.*"):
        if file.name != name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(DataError, match=f"has no .*{name}.*optimum-cli"):
        clip.Clip(tmp_path)
