# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""First codebooks: k-means, other sizes of a given one, and suggested sizes."""

import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from config_test import changed
from etils import epath

import rq
from rq.cli import program
from rq.config import ConfigError, validate
from rq.data import loader, sources
from rq.evaluation import codebook_report
from rq.metrics import codebook_sizes
from rq.models import codebook_fit, quantizer
from rq.models.codebook import Codebook, Update, update_codebook
from rq.parallel import sharding
from rq.training import checkpoint, codebook_start
from rq.training.stages import RQVAEStage

KEY = jax.random.key(3)
SETTINGS = [
    (True, (16,) * 3),
    (False, (16,) * 3),
    (False, (16, 8, 4)),
    (True, (2,) * 3),
]


def vectors(groups=4, number=96, channels=6, seed=0):
    """Vectors whose channels differ in scale, float32 `[G, M, C]`."""
    found = np.random.default_rng(seed).normal(size=(groups, number, channels))
    return jnp.asarray(found * np.linspace(0.2, 2, channels), jnp.float32)


@functools.partial(jax.jit, static_argnums=(1, 2))
def fit(x, sizes, shared, key=KEY):
    return codebook_fit.fit(x, sizes, shared, key)


def errors(x, codebook, sizes, shared):
    """The mean squared error after each depth."""
    own = None if shared else sizes
    sums = quantizer.quantize(x, codebook, depth=len(sizes), sizes=own).sums
    return [float(jnp.mean((x - s) ** 2)) for s in sums]


# k-means


@pytest.mark.parametrize(("shared", "sizes"), SETTINGS)
def test_k_means_is_nearer_than_vectors_of_the_batch(shared, sizes):
    x = vectors()
    found = fit(x, sizes, shared)
    shape = (max(sizes),) if shared else (len(sizes), max(sizes))
    assert found.counts.shape == shape
    assert found.embedding.shape == found.sums.shape == (*shape, 6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    drawn = x.reshape(-1, 6)[: found.embedding[..., 0].size].reshape(*shape, 6)
    random = Codebook(drawn, found.counts, drawn)
    assert errors(x, found, sizes, shared)[-1] < errors(x, random, sizes, shared)[-1]
    # Counted as in a batch, where they are.
    exists = found.counts > 0
    assert float(jnp.min(found.counts[exists])) >= 1
    np.testing.assert_array_equal(found.sums, found.embedding * found.counts[..., None])
    own = [int(n) for n in np.sum(exists, axis=-1).ravel()]
    assert own == ([sizes[0]] if shared else list(sizes))
    again = fit(x, sizes, shared)
    jax.tree.map(np.testing.assert_array_equal, again, found)


def test_clusters_are_found_depth_by_depth():
    centres = np.random.default_rng(0).normal(size=(5, 6)) * 10
    small = np.random.default_rng(1).normal(size=(4, 6))
    small -= small.mean(0)
    which = np.random.default_rng(2).integers(0, 20, (4, 96))
    x = jnp.asarray((centres[:, None] + small).reshape(20, 6)[which], jnp.float32)
    found = fit(x, (5, 4), False)
    assert (
        errors(x, found, (5, 4), False)[1] < 0.05 < errors(x, found, (5, 4), False)[0]
    )


def test_sharded_vectors_give_the_same_codebook():
    x, mesh = vectors(), sharding.make_mesh()
    place = jax.sharding.NamedSharding(
        mesh, jax.sharding.PartitionSpec(None, sharding.BATCH_AXES)
    )
    for shared in (True, False):
        found = fit(jax.device_put(x, place), (16, 16), shared)
        expected = fit(x, (16, 16), shared)
        np.testing.assert_allclose(found.embedding, expected.embedding, atol=1e-4)


# Another size


def resized(given, before, x, sizes, shared):
    make = jax.jit(
        lambda given, x: codebook_fit.resize(x, sizes, shared, KEY, given, before)
    )
    return make(given, x)


@pytest.mark.parametrize("shared", [True, False])
def test_the_most_used_codes_stay_in_their_order(shared):
    x, before = vectors(), (16, 16)
    given = fit(x, before, shared)
    found = resized(given, before, x, (6, 6), shared)
    codes = quantizer.quantize(
        x, given, depth=2, sizes=None if shared else before
    ).codes
    used = [np.bincount(codes[..., d].ravel(), minlength=16) for d in (0, 1)]
    if shared:
        used, pairs = sum(used), [(given.embedding, found.embedding)]
        used = [used]
    else:  # what is left for depth 2 depends on what depth 1 has lost
        pairs = [(given.embedding[0], found.embedding[0])]
    kept = np.sort(np.argsort(-used[0], kind="stable")[:6])
    np.testing.assert_array_equal(pairs[0][1], pairs[0][0][kept])


@pytest.mark.parametrize("shared", [True, False])
def test_codes_are_added_where_residuals_are_far(shared):
    x, before = vectors(), (8, 8)
    given = fit(x, before, shared)
    found = resized(given, before, x, (24, 24), shared)
    np.testing.assert_array_equal(found.embedding[..., :8, :], given.embedding)
    more, fewer = (
        errors(x, book, sizes, shared)[-1]
        for book, sizes in ((found, (24, 24)), (given, before))
    )
    assert more < 0.9 * fewer
    assert len(np.unique(found.embedding.reshape(-1, 6), axis=0)) >= 24
    if shared:  # and training does not restart them, as long as no vector is near
        nothing = jnp.full((2, 6), 1e3), jnp.zeros(2, jnp.int32)
        after = update_codebook(found, *nothing, Update(decay=0.99), jax.random.key(1))
        np.testing.assert_allclose(after.embedding[1:], found.embedding[1:], rtol=1e-5)


def test_depths_take_their_own_from_a_shared_codebook():
    x = vectors()
    given = fit(x, (16, 16), True)
    same = resized(given, (16, 16), x, (16, 16), False)
    np.testing.assert_array_equal(same.embedding, jnp.stack([given.embedding] * 2))
    other = resized(given, (16, 16), x, (4, 20), False)
    assert other.embedding.shape == (2, 20, 6)
    assert not other.embedding[0, 4:].any() and not other.counts[0, 4:].any()
    np.testing.assert_array_equal(other.embedding[1, :16], given.embedding)


# Before the first step of a run


@pytest.fixture
def images(data_dir):
    config = changed({"data.dir": str(data_dir)})
    return sources.open_split(config.data, "train")


def started(config, source, run, devices=1):
    """The state before the first step, and the first batch that is trained on."""
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    stage = RQVAEStage(config, mesh, lambda: iter([]))
    shardings = sharding.state_shardings(jax.eval_shape(stage.init, KEY), mesh)
    init = jax.jit(lambda k: sharding.unbox(stage.init(k)), out_shardings=shardings)
    data = loader.shuffled(source, config.data, batch_size=8, seed=0)
    state = codebook_start.first_state(config, epath.Path(run), stage, data)(init(KEY))
    return stage, state, next(data)


@pytest.mark.slow
def test_the_batches_that_k_means_reads_are_trained_on(images, tmp_path):
    changes = {"rqvae.codebook_init": "kmeans", "rqvae.codebook_batches": 3}
    random = started(changed({}), images, tmp_path)
    first = started(changed(changes), images, tmp_path)
    again = started(changed(changes), images, tmp_path, devices=8)
    np.testing.assert_array_equal(first[2]["image"], random[2]["image"])
    fitted, many = first[1].codebook["state"], again[1].codebook["state"]
    np.testing.assert_allclose(fitted.embedding, many.embedding, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, first[1].params, random[1].params)
    stage, pixels = first[0], first[2]["image"].astype(np.float32) / 127.5 - 1
    losses = [
        stage.model.apply({"params": state.params, "codebook": state.codebook}, pixels)[
            2
        ]
        for _, state, _ in (first, random)
    ]
    assert losses[0] < losses[1]


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(8,), (12, 20)])
def test_a_given_codebook_is_resized(trained, images, tmp_path, sizes):
    changes = {"init_from": str(trained), "rqvae.model.num_codes": sizes}
    own = len(sizes) > 1
    changes["rqvae.model.shared_codebook"] = not own
    changes["rqvae.codebook_batches"] = 2
    _, state, _ = started(changed(changes), images, tmp_path)
    given = checkpoint.load_model(trained / "rqvae", "rqvae")[0]
    jax.tree.map(np.testing.assert_array_equal, state.params, given["params"])
    old = given["codebook"]["state"].embedding
    found = state.codebook["state"].embedding
    assert found.shape == ((2,) if own else ()) + (max(sizes), old.shape[-1])
    rows = np.asarray(found).reshape(-1, old.shape[-1])
    known = [(row == old).all(-1).any() for row in rows]
    padding = sum(max(sizes) - n for n in sizes)
    assert sum(known) == sum(min(n, 16) for n in sizes)
    assert (~rows.any(-1)).sum() == padding


@pytest.mark.slow
def test_a_codebook_that_fits_is_taken_as_it_is(trained, images, tmp_path):
    changes = {"init_from": str(trained), "rqvae.codebook_init": "kmeans"}
    _, state, _ = started(changed(changes), images, tmp_path)
    given = checkpoint.load_model(trained / "rqvae", "rqvae")[0]
    jax.tree.map(np.testing.assert_array_equal, state.codebook, given["codebook"])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rqvae.codebook_batches": 1, "rqvae.model.num_codes": (256,)},
         "codebook_batches = 1: 1 batches have 128 vectors for 256 codes"),
        ({"rqvae.model.cosine": True, "rqvae.model.shared_codebook": False},
         "codebook_init = 'kmeans': k-means is by distance"),
    ],
)  # fmt: skip
def test_k_means_that_cannot_be_is_refused(changes, problem):
    with pytest.raises(ConfigError, match=problem):
        validate(changed({"rqvae.codebook_init": "kmeans"} | changes))


# Suggestions


@pytest.mark.parametrize(
    ("entropy", "bits", "expected"),
    [
        ((8, 8, 8, 8), 32, (256,) * 4),
        ((5.0, 7.0, 8.0, 8.0), 32, (64, 256, 512, 512)),
        ((0.0, 0.0, 9.0), 12, (2, 2, 1024)),
        ((3.2, 3.1, 3.3), 10, (8, 8, 16)),
        ((13.5, 12.0, 10.0, 8.0), 56, (2**16, 2**16, 2**13, 2**11)),  # stored: uint16
    ],
)
def test_sizes_of_equal_bits_follow_the_entropy(entropy, bits, expected):
    found = codebook_sizes.equal_bits(entropy, bits)
    assert sorted(found) == sorted(expected) and np.prod(found) == 2**bits
    assert (
        np.argsort(found, kind="stable") == np.argsort(expected, kind="stable")
    ).all()


def test_the_fewest_codes_are_at_least_the_perplexity():
    assert codebook_sizes.fewest([0.0, 3.0, 3.01, 7.9]) == (2, 8, 16, 256)
    with pytest.raises(ValueError, match="2 bits for 3 depths"):
        codebook_sizes.equal_bits([1, 1, 1], 2.5)


def test_no_sizes_are_suggested_for_a_fixed_grid():
    experiment = types.SimpleNamespace(rqvae=types.SimpleNamespace(fsq_levels=(4, 4)))
    with pytest.raises(ConfigError, match="fsq_levels"):
        codebook_report.measure(experiment, "validation")


def test_the_command_prints_flags_that_can_be_used(trained, tmp_path, capsys, data_dir):
    out = tmp_path / "sizes.json"
    flags = [f"--out={out}", f"--config.data.dir={data_dir}"]
    program.main(["suggest-codebook", str(trained), *flags])
    printed, report = capsys.readouterr().out, json.loads(out.read_text())
    assert report["num_codes"] == [16, 16] and report["vectors"] == 500 * 16
    rq.load(trained).save(tmp_path / "saved")
    program.main(["suggest-codebook", str(tmp_path / "saved"), *flags])
    assert json.loads(out.read_text()) == report
    capsys.readouterr()
    assert np.prod(report["equal_bits"]["num_codes"]) == 256
    for depth in range(2):
        assert 2 ** report["entropy_bits"][depth] <= report["used"][depth] <= 16
        assert f"{report['perplexity'][depth]:.1f}" in printed
    config = changed({})
    for name in ("equal_bits", "fewest"):
        model = config.transformer.model
        flags = codebook_report.overrides(report[name]["num_codes"], model)
        assert f"  {' '.join(flags)}\n" in printed
    sizes = codebook_report.overrides((32, 8), model)
    args = ["rq", "--config=configs/digits.py:tiny", *sizes]
    values = program.parse(program.module("train"), args[1:])
    assert values.config.rqvae.model.num_codes == (32, 8)
    validate(values.config)
