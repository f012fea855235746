# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Residual quantization: what must hold for any vectors and codebooks."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from rq.models import codebook as codebook_module
from rq.models import quantizer
from rq.models.codebook import Codebook, Update, init_codebook, update_codebook

# Shape, codes, channels, depth, and whether each depth has its own; each compiles.
FORMS = [
    ((7,), 1, 1, 1, False),
    ((7,), 9, 5, 4, False),
    ((2, 3), 4, 1, 2, False),
    ((2, 3, 4), 6, 3, 3, False),
    ((2, 3), 8, 2, 1, True),
    ((2, 3, 4), 9, 4, 4, True),
]
CASES = dict(seed=st.integers(0, 2**20), form=st.sampled_from(FORMS))
few = hypothesis.settings(max_examples=20, deadline=None)

residual_quantize = jax.jit(
    quantizer.residual_quantize, static_argnames=("depth", "sizes")
)
nearest = jax.jit(quantizer.nearest, static_argnames="chunk")


def draw(seed, shape, num_codes, channels, depth, own):
    """Vectors, a codebook and the arguments that say its form."""
    z_key, key = jax.random.split(jax.random.key(seed))
    sizes = None
    if own:
        rng = np.random.default_rng(depth)  # not the seed: each choice compiles
        sizes = tuple(int(n) for n in rng.integers(1, num_codes + 1, depth))
        codebook = init_codebook(key, (depth, num_codes, channels), sizes)
    else:
        codebook = init_codebook(key, (num_codes, channels))
    z = jax.random.normal(z_key, (*shape, channels))
    return z, codebook, dict(depth=depth, sizes=sizes)


@hypothesis.given(**CASES)
@few
def test_codes_are_nearest_by_brute_force_in_float64(seed, form):
    z, codebook, form = draw(seed, *form)
    codes, sums = residual_quantize(z, codebook, **form)
    residual = np.asarray(z, np.float64)
    for d in range(form["depth"]):
        book = np.asarray(codebook.embedding, np.float64)
        book = book if book.ndim == 2 else book[d, : form["sizes"][d]]
        distance = ((residual[..., None, :] - book) ** 2).sum(-1)
        chosen = np.take_along_axis(distance, np.asarray(codes)[..., d, None], -1)[
            ..., 0
        ]
        np.testing.assert_allclose(chosen, distance.min(-1), rtol=1e-5, atol=1e-5)
        residual = np.asarray(z, np.float64) - np.asarray(sums[d], np.float64)


@hypothesis.given(**CASES)
@few
def test_running_sums_telescope_to_the_looked_up_codes(seed, form):
    z, codebook, form = draw(seed, *form)
    codes, sums = residual_quantize(z, codebook, **form)
    vectors = quantizer.embed(codes, codebook.embedding)
    expected = jnp.moveaxis(jnp.cumsum(vectors, axis=-2), -2, 0)
    np.testing.assert_allclose(sums, expected, rtol=1e-5, atol=1e-5)


@hypothesis.given(**CASES)
@few
def test_permuting_the_batch_permutes_the_codes(seed, form):
    z, codebook, form = draw(seed, *form)
    order = np.random.default_rng(seed).permutation(len(z))
    codes, _ = residual_quantize(z, codebook, **form)
    permuted, _ = residual_quantize(z[order], codebook, **form)
    np.testing.assert_array_equal(permuted, codes[order])


@hypothesis.given(
    seed=st.integers(0, 999),
    num_codes=st.sampled_from([1, 12, 40]),
    chunk=st.sampled_from([1, 5, 12, 17]),
)
@few
def test_search_in_chunks_equals_search_at_once(seed, num_codes, chunk):
    z, codebook, _ = draw(seed, (11,), num_codes, 3, 1, False)
    valid = (
        jax.random.bernoulli(jax.random.key(seed), 0.7, (num_codes,)).at[0].set(True)
    )
    # Copies of codes: ties go to the lowest index, across chunks too.
    embedding = codebook.embedding.at[-1].set(codebook.embedding[0])
    whole = nearest(z, embedding, valid, chunk=10**6)
    found = nearest(z, embedding, valid, chunk=chunk)
    np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_among_equal_codes_the_lowest_is_taken(chunk):
    z = jax.random.normal(jax.random.key(0), (5, 2))
    equal = jnp.ones((7, 2))
    codes = quantizer.nearest(z, equal, chunk=chunk)
    np.testing.assert_array_equal(codes, 0)
    valid = jnp.arange(7) > 2
    codes = quantizer.nearest(z, equal, valid, chunk)
    np.testing.assert_array_equal(codes, 3)


@hypothesis.given(
    seed=st.integers(0, 999),
    blocks=st.tuples(*[st.integers(1, 3)] * 4),
    channels=st.integers(1, 3),
)
@few
def test_unpack_inverts_pack(seed, blocks, channels):
    rows, columns, r, c = blocks
    z = jax.random.normal(jax.random.key(seed), (2, rows * r, columns * c, channels))
    packed = quantizer.pack(z, rows, columns)
    assert packed.shape == (2, rows, columns, r * c * channels)
    back = quantizer.unpack(packed, rows * r, columns * c)
    np.testing.assert_array_equal(back, z)


def test_straight_through_passes_gradients_unchanged():
    z = jax.random.normal(jax.random.key(0), (5, 4))
    embedding = jax.random.normal(jax.random.key(1), (8, 4))
    weights = jax.random.normal(jax.random.key(2), (5, 4))

    def value(z):
        _, sums = quantizer.residual_quantize(z, embedding, depth=3)
        return jnp.sum(weights * quantizer.straight_through(z, sums[-1]))

    np.testing.assert_allclose(jax.grad(value)(z), weights, rtol=1e-6)


def test_commitment_gradient_ignores_the_codes():
    """d/dz of mean over depth of mean (z - sg[sum_d])^2, written out."""
    z = jax.random.normal(jax.random.key(0), (5, 4))
    embedding = jax.random.normal(jax.random.key(1), (8, 4))

    def value(z):
        _, sums = quantizer.residual_quantize(z, embedding, depth=3)
        return quantizer.commitment_loss(z, sums)

    _, sums = quantizer.residual_quantize(z, embedding, depth=3)
    expected = jnp.mean(2 * (z - sums), axis=0) / z.size
    np.testing.assert_allclose(jax.grad(value)(z), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("own", [False, True])
def test_update_conserves_counts_and_sums(own):
    """With decay 0 counts and sums are those of the batch, at the last depth."""
    z, codebook, form = draw(0, (50,), 6, 3, 2, own)
    update = Update(decay=0.0, restart=False)
    result = quantizer.quantize(z, codebook, update=update, **form)
    counts, sums = result.codebook.counts, result.codebook.sums
    last = (counts, sums) if not own else (counts[-1], sums[-1])
    expected = np.bincount(result.codes[:, -1], minlength=6)
    np.testing.assert_array_equal(last[0], expected)
    residual = z - result.sums[-2]
    np.testing.assert_allclose(jnp.sum(last[1], 0), jnp.sum(residual, 0), atol=1e-4)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("chunk", [4, 7, 8192])
def test_sums_by_products_are_those_by_scattering(monkeypatch, own, chunk):
    for module in (quantizer, codebook_module):
        monkeypatch.setattr(module, "CHUNK", chunk)
    z, codebook, form = draw(0, (50,), 10, 3, 2, own)
    key = jax.random.key(5)
    found = [
        quantizer.quantize(z, codebook, update=Update(sums=kind), key=key, **form)
        for kind in ("scatter", "one_hot")
    ]
    np.testing.assert_array_equal(found[0].codes, found[1].codes)
    np.testing.assert_array_equal(found[0].codebook.counts, found[1].codebook.counts)
    np.testing.assert_allclose(
        found[0].codebook.sums, found[1].codebook.sums, 1e-5, 1e-6
    )


def test_sums_by_products_scatter_nothing():
    """Scattered additions have no fixed order on a GPU."""

    def lowered(kind):
        z, codebook, _ = draw(0, (50,), 10, 3, 2, False)
        update = Update(sums=kind, restart=False)

        def step(z, codebook):
            return quantizer.quantize(z, codebook, depth=2, update=update).codebook

        return jax.jit(step).lower(z, codebook).as_text()

    assert "stablehlo.scatter" in lowered("scatter")
    assert "stablehlo.scatter" not in lowered("one_hot")


def test_shared_codebook_moves_between_depths():
    """Depth 2 searches what depth 1 has just updated (the authors' order)."""
    z, codebook, _ = draw(3, (64,), 4, 2, 2, False)
    update = Update(decay=0.5, restart=False)
    result = quantizer.quantize(z, codebook, depth=2, update=update)
    codes = quantizer.nearest(z, codebook.embedding)
    moved = update_codebook(codebook, z, codes, update)
    residual = z - codebook.embedding[codes]
    second = quantizer.nearest(residual, moved.embedding)
    np.testing.assert_array_equal(result.codes[:, 0], codes)
    np.testing.assert_array_equal(result.codes[:, 1], second)
    assert (second != quantizer.nearest(residual, codebook.embedding)).any()


@jax.jit
def codebook_of_dead_codes(z, codebook, key):
    """The codebook after an update: counts start at 0 and decay keeps them below 1."""
    codes = quantizer.nearest(z, codebook.embedding)
    return update_codebook(codebook, z, codes, Update(decay=0.99), key)


@hypothesis.given(
    seed=st.integers(0, 999),
    num_codes=st.sampled_from([2, 17, 40]),
    vectors=st.sampled_from([1, 17, 30]),
)
@few
def test_restarted_codes_are_vectors_of_the_batch(seed, num_codes, vectors):
    z, codebook, _ = draw(seed, (vectors,), num_codes, 3, 1, False)
    updated = codebook_of_dead_codes(z, codebook, jax.random.key(seed))
    assert (np.asarray(updated.counts) >= 1).any()
    difference = np.asarray(updated.sums)[:, None] - np.asarray(z)
    bound = 0 if vectors >= num_codes else 0.01 / 3**0.5
    inside = ((difference >= -1e-6) & (difference <= bound + 1e-6)).all(-1)
    dead = np.asarray(updated.counts) == 1
    assert inside.any(1)[dead].all()
    if vectors >= num_codes:
        assert len(np.unique(np.asarray(updated.sums)[dead], axis=0)) == dead.sum()


def test_codes_restart_below_one_vector_and_not_above():
    """Moving counts of 0.9, 1.0 and 1.5 after the update."""
    counts = jnp.array([1.8, 2.0, 3.0])
    book = Codebook(jnp.eye(3), counts, jnp.eye(3) * counts[:, None])
    z = jnp.full((4, 3), 7.0)
    codes = jnp.zeros(4, int)
    halved = Update(decay=0.5)
    # No vector is assigned to any of these: the batch is that of a fourth code.
    four = jax.tree.map(lambda x: jnp.concatenate([x, x[:1]]), book)
    updated = update_codebook(four, z, codes + 3, halved, jax.random.key(0))
    np.testing.assert_allclose(updated.counts[:3], [1.0, 1.0, 1.5])
    np.testing.assert_allclose(updated.sums[0], [7, 7, 7])  # restarted
    np.testing.assert_allclose(updated.sums[1:3], book.sums[1:] / 2)


@pytest.mark.parametrize("own", [True, False])
def test_every_depth_has_its_decay(own):
    z, codebook, form = draw(2, (40,), 4, 3, 2, False)
    if own:
        codebook = jax.tree.map(lambda x: jnp.stack([x, x]), codebook)
        form = {}
    decays = jnp.array([0.25, 0.75])
    update = Update(decay=decays, restart=False)
    found = quantizer.quantize(z, codebook, update=update, **(form | {"depth": 2}))
    first = np.bincount(found.codes[:, 0], minlength=4)
    second = np.bincount(found.codes[:, 1], minlength=4)
    if own:
        expected = [0.75 * first, 0.25 * second]
    else:
        expected = 0.75 * (0.75 * first) + 0.25 * second
    np.testing.assert_allclose(found.codebook.counts, expected, rtol=1e-6)


def test_padding_codes_stay_untouched():
    z, codebook, form = draw(1, (30,), 7, 3, 3, True)
    result = quantizer.quantize(
        z, codebook, update=Update(), key=jax.random.key(0), **form
    )
    for d, size in enumerate(form["sizes"]):
        assert (np.asarray(result.codes)[:, d] < size).all()
        assert not np.asarray(result.codebook.embedding)[d, size:].any()
        assert not np.asarray(result.codebook.counts)[d, size:].any()


def test_soft_codes_are_the_softmax_of_distances_along_the_codes():
    z, codebook, _ = draw(5, (6,), 8, 3, 3, False)
    result = quantizer.quantize(
        z, codebook, depth=3, temperature=0.7, stochastic=True, key=jax.random.key(0)
    )
    residual = z
    for d in range(3):
        distance = jnp.sum((residual[:, None] - codebook.embedding) ** 2, -1)
        expected = jax.nn.softmax(-distance / 0.7, axis=-1)
        np.testing.assert_allclose(result.soft[:, d], expected, rtol=1e-4, atol=1e-6)
        residual = residual - codebook.embedding[result.codes[:, d]]


@pytest.mark.parametrize("shared", [True, False])
def test_soft_codes_of_given_codes_are_those_of_the_quantizer(shared):
    """So that a loss in microbatches sees what the whole one would."""
    z, codebook, form = draw(4, (5, 2), 9, 3, 4, not shared)
    result = quantizer.quantize(
        z, codebook, temperature=0.6, stochastic=True, key=jax.random.key(3), **form
    )
    again = quantizer.soft_codes(z, result.codes, codebook, form.get("sizes"), 0.6)
    np.testing.assert_allclose(again, result.soft, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("chunk", [2, 3, 5, 7])
def test_codes_drawn_in_chunks_follow_the_distribution_of_all(chunk):
    """As where a codebook is larger than `CHUNK`; what is not valid never comes."""
    number, temperature = 40_000, 1.5
    vectors = jnp.tile(jnp.array([[0.3, -0.2]]), (number, 1))
    embedding = jax.random.normal(jax.random.key(1), (7, 2))
    valid = jnp.array([True] * 6 + [False])
    codes = quantizer.nearest(
        vectors, embedding, valid, chunk, temperature, jax.random.key(2)
    )
    distance = jnp.sum((vectors[0] - embedding) ** 2, axis=-1)
    expected = jax.nn.softmax(jnp.where(valid, -distance / temperature, -jnp.inf))
    frequencies = np.bincount(codes, minlength=7) / number
    np.testing.assert_allclose(frequencies, expected, atol=0.01)


def test_stochastic_codes_follow_their_distribution():
    z = jnp.tile(jax.random.normal(jax.random.key(0), (1, 2)), (20_000, 1))
    embedding = jax.random.normal(jax.random.key(1), (5, 2))
    codebook = Codebook(embedding, jnp.zeros(5), embedding)
    result = quantizer.quantize(
        z, codebook, depth=1, temperature=2.0, stochastic=True, key=jax.random.key(2)
    )
    frequencies = np.bincount(result.codes[:, 0], minlength=5) / len(z)
    np.testing.assert_allclose(frequencies, result.soft[0, 0], atol=0.015)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(z=(3, 5)), "5 channels"),
        (dict(depth=None), "needs `depth`"),
        (dict(book=(2, 8, 4), depth=3), "depth 3"),
        (dict(book=(2, 8, 4), depth=2, sizes=(8, 9)), "sizes"),
        (dict(stochastic=True, temperature=1.0), "key"),
        (dict(book=(8,)), "codebook"),
    ],
)
def test_wrong_arguments_are_refused(kwargs, message):
    z = jnp.zeros(kwargs.pop("z", (3, 4)))
    embedding = jnp.zeros(kwargs.pop("book", (8, 4)))
    options = {"depth": 2} | kwargs
    with pytest.raises(ValueError, match=message):
        codebook = Codebook(embedding, embedding[..., 0], embedding)
        quantizer.quantize(z, codebook, **options)
