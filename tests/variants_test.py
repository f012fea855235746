# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Variants of the quantizer: the maths of each, and an RQ-VAE that trains with it."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from authors_test import weights
from hypothesis import strategies as st

from rq.models import RQVAE, quantizer, variants
from rq.models.codebook import Codebook, Update, init_codebook, update_codebook

few = hypothesis.settings(max_examples=10, deadline=None)
TINY = dict(
    resolution=8,
    image_channels=3,
    ch=32,
    ch_mult=(1, 1),
    num_res_blocks=1,
    attn_resolutions=(),
    z_channels=8,
    embed_dim=3,
    code_shape=(4, 4, 3),
    num_codes=(12,),
)
VARIANTS = {
    "residual": {},
    "plain": dict(code_shape=(4, 4, 1)),
    "own": dict(shared_codebook=False),
    "cosine": dict(shared_codebook=False, cosine=True),
    "cosine packed": dict(code_shape=(2, 2, 1), cosine=True),
    "fsq": dict(shared_codebook=False, fsq_levels=(2, 3, 2)),
    "rotation": dict(gradient="rotation"),
    "dropout": dict(depth_dropout=0.5),
}
FEW = ("residual", "cosine", "fsq", "dropout")
every_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)


def make(changes):
    model = RQVAE(**(TINY | changes))
    images = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3), minval=-1)
    return model, weights(model), images


def run(model, variables, method, *args):
    """One method, compiled."""
    apply = jax.jit(lambda v, *args: model.apply(v, *args, method=method))
    return apply(variables, *args)


def train(model, variables, images, steps, entropy_weight=0.0):
    """Losses of some training steps, and the variables after them."""
    tx = optax.adam(1e-2)

    @jax.jit
    def step(variables, opt_state, key):
        def loss(params):
            def forward(model):
                z = model.encode(images)
                entropy = model.assignment_entropy(z, 1.0) if entropy_weight else 0.0
                quantized, _, commitment = model.quantize(z, train=True)
                error = jnp.mean((model.decode(quantized) - images) ** 2)
                return error + 0.25 * commitment + entropy_weight * entropy

            value, moved = model.apply(
                variables | {"params": params},
                method=forward,
                mutable=["codebook"],
                rngs={"codebook": key},
            )
            return value, moved

        (value, moved), grads = jax.value_and_grad(loss, has_aux=True)(
            variables["params"]
        )
        updates, opt_state = tx.update(grads, opt_state)
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params} | moved, opt_state, value

    opt_state, losses = tx.init(variables["params"]), []
    for k in range(steps):
        variables, opt_state, value = step(variables, opt_state, jax.random.key(k))
        losses.append(float(value))
    return losses, variables


@pytest.mark.slow
@every_variant
def test_training_lowers_the_loss_and_stored_features_give_the_codes(changes):
    model, variables, images = make(changes)
    losses, variables = train(model, variables, images, steps=12)
    assert np.isfinite(losses).all() and losses[-1] < 0.8 * losses[0]

    # What stage 2 does: codes and soft codes from the packed features alone.
    z = run(model, variables, "encode", images)
    codes = run(model, variables, "codes", images)
    stored = run(model, variables, "pack", z)
    book = variables["codebook"]["state"]
    again = quantizer.quantize(stored, book, depth=model.depth, temperature=0.1)
    np.testing.assert_array_equal(again.codes, codes)
    np.testing.assert_array_equal(np.argmax(again.soft, -1), codes)
    decoded = run(model, variables, "decode_codes", codes)
    outputs = run(model, variables, "__call__", images)[0]
    np.testing.assert_allclose(decoded, outputs, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        VARIANTS[name] if name in FEW else pytest.param(x, marks=pytest.mark.slow)
        for name, x in VARIANTS.items()
    ],
    ids=VARIANTS,
)
def test_a_prefix_of_the_codes_does_not_depend_on_the_rest(changes):
    model, variables, images = make(changes)
    if model.depth == 1:
        pytest.skip("one depth has no prefix")
    z = run(model, variables, "encode", images)
    book = variables["codebook"]["state"]
    whole = quantizer.quantize(z, book, depth=model.depth)
    if not model.shared_codebook:
        book = jax.tree.map(lambda x: x[:2], book)
    cut = quantizer.quantize(z, book, depth=2)
    np.testing.assert_array_equal(cut.codes, whole.codes[..., :2])
    np.testing.assert_array_equal(cut.sums, whole.sums[:2])


def test_depth_one_is_plain_vector_quantization():
    z = jax.random.normal(jax.random.key(0), (50, 3))
    book = jax.random.normal(jax.random.key(1), (7, 3))
    codes, sums = quantizer.residual_quantize(z, book, depth=1)
    distance = np.linalg.norm(np.asarray(z)[:, None] - np.asarray(book), axis=-1)
    np.testing.assert_array_equal(codes[:, 0], distance.argmin(-1))
    np.testing.assert_array_equal(sums[0], book[distance.argmin(-1)])


@hypothesis.given(seed=st.integers(0, 999), depth=st.integers(1, 3))
@few
def test_cosine_codes_have_one_length_and_are_the_nearest_by_angle(seed, depth):
    keys = jax.random.split(jax.random.key(seed), 3)
    z = variants.unit(jax.random.normal(keys[0], (64, 4)))
    book = init_codebook(keys[1], (depth, 6, 4))
    book = book.replace(embedding=variants.unit(book.embedding))
    update = Update(decay=0.5, one_length=True)
    book = quantizer.quantize(z, book, update=update, key=keys[2]).codebook
    lengths = np.linalg.norm(book.embedding, axis=-1)
    np.testing.assert_allclose(lengths, lengths[:, :1] * np.ones((1, 6)), rtol=1e-5)

    quantized = quantizer.quantize(z, book)
    residual = z
    for d in range(depth):
        angle = jnp.einsum(
            "nc,kc->nk", variants.unit(residual), variants.unit(book.embedding[d])
        )
        chosen = jnp.take_along_axis(angle, quantized.codes[:, d, None], 1)[:, 0]
        np.testing.assert_allclose(chosen, angle.max(1), atol=1e-5)
        residual = z - quantized.sums[d]


def test_the_length_of_cosine_codes_is_the_best_one():
    """With the moving averages at rest no other common length fits better."""
    z = jax.random.normal(jax.random.key(0), (300, 4)) + 1
    codes = quantizer.nearest(z, jax.random.normal(jax.random.key(1), (5, 4)))
    empty = Codebook(jnp.ones((5, 4)), jnp.zeros(5), jnp.zeros((5, 4)))
    update = Update(decay=0.0, restart=False, one_length=True)
    book = update_codebook(empty, z, codes, update)

    def error(scale):
        return float(jnp.mean((z - scale * book.embedding[codes]) ** 2))

    assert error(1.0) < min(error(0.99), error(1.01))


@hypothesis.given(
    seed=st.integers(0, 999),
    levels=st.lists(st.integers(2, 5), min_size=1, max_size=3),
    depth=st.integers(1, 4),
)
@few
def test_fsq_is_rounding_by_channel_and_its_error_shrinks_with_depth(
    seed, levels, depth
):
    shape = (40, len(levels))
    z = jax.random.uniform(jax.random.key(seed), shape, minval=-1)
    grids = variants.fsq_grids(tuple(levels), depth)
    assert grids.shape == (depth, np.prod(levels), len(levels))
    _, sums = quantizer.residual_quantize(z, grids)
    steps = np.asarray(levels) - 1.0
    rounded = np.round((np.asarray(z, np.float64) + 1) / 2 * steps) / steps * 2 - 1
    np.testing.assert_allclose(sums[0], rounded, atol=1e-5)
    for d in range(depth):
        left = np.abs(np.asarray(z) - np.asarray(sums[d]))
        assert (left <= steps ** -(d + 1) + 1e-5).all()


@pytest.mark.slow
def test_training_leaves_a_fixed_grid_as_it_is():
    model, variables, images = make(VARIANTS["fsq"])
    _, after = train(model, variables, images, steps=2)
    jax.tree.map(
        np.testing.assert_array_equal, variables["codebook"], after["codebook"]
    )


@pytest.mark.slow
@hypothesis.given(seed=st.integers(0, 999), channels=st.integers(2, 5))
@few
def test_rotation_gradient_is_a_scaled_rotation_from_z_to_its_code(seed, channels):
    keys = jax.random.split(jax.random.key(seed))
    z, q = (jax.random.normal(key, (channels,)) for key in keys)
    np.testing.assert_array_equal(variants.rotate(z, q), q)
    jacobian = np.asarray(jax.jacobian(variants.rotate)(z, q), np.float64)
    scale = np.linalg.norm(q) / np.linalg.norm(z)
    rotation = jacobian / scale
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(channels), atol=1e-4)
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-4)
    np.testing.assert_allclose(jacobian @ np.asarray(z), q, atol=1e-4)


@pytest.mark.parametrize(
    "z, q", [((0, 0), (1, 2)), ((1, 2), (0, 0)), ((1, 2), (-1, -2))]
)
def test_rotation_gradient_is_finite_where_there_is_no_rotation(z, q):
    z, q = jnp.asarray(z, float), jnp.asarray(q, float)
    np.testing.assert_array_equal(variants.rotate(z, q), q)
    assert np.isfinite(jax.jacobian(variants.rotate)(z, q)).all()


@pytest.mark.parametrize("z, q", [((0, 0), (1, 2)), ((1, 2), (0, 0))])
def test_gradients_pass_unchanged_where_a_vector_has_no_direction(z, q):
    z, q = jnp.asarray(z, float), jnp.asarray(q, float)
    np.testing.assert_array_equal(jax.jacobian(variants.rotate)(z, q), np.eye(2))


def test_depth_dropout_cuts_its_share_of_images_evenly_over_depth():
    sums = jnp.arange(4.0)[:, None] * jnp.ones((4, 8000))
    kept = np.asarray(variants.cut_depth(jax.random.key(0), sums, 0.5))
    share = np.bincount(kept.astype(int), minlength=4) / len(kept)
    np.testing.assert_allclose(share, [0.125, 0.125, 0.125, 0.625], atol=0.02)
    whole = variants.cut_depth(jax.random.key(0), sums, 0.0)
    np.testing.assert_array_equal(whole, sums[-1])


def test_depth_dropout_changes_what_is_decoded_in_training_alone():
    model, variables, images = make(dict(depth_dropout=1.0))
    rngs = {"codebook": jax.random.key(0)}
    z = run(model, variables, "encode", images)
    (cut, codes, commitment), _ = model.apply(
        variables, z, True, method="quantize", mutable=["codebook"], rngs=rngs
    )
    plain = RQVAE(**TINY)
    (full, plain_codes, plain_commitment), _ = plain.apply(
        variables, z, True, method="quantize", mutable=["codebook"], rngs=rngs
    )
    np.testing.assert_array_equal(codes, plain_codes)
    np.testing.assert_array_equal(commitment, plain_commitment)
    same = np.isclose(cut, full).all(axis=(1, 2, 3))
    assert not same.all()
    evaluated = run(model, variables, "quantize", z)[0]
    np.testing.assert_array_equal(
        evaluated, plain.apply(variables, z, method="quantize")[0]
    )


@hypothesis.given(seed=st.integers(0, 999), depth=st.integers(1, 3), own=st.booleans())
@few
def test_entropy_regularisation_equals_its_definition(seed, depth, own):
    keys = jax.random.split(jax.random.key(seed))
    z = jax.random.normal(keys[0], (20, 3))
    sizes = (5,) * (depth - 1) + (4,) if own else None
    shape = (depth, 5, 3) if own else (5, 3)
    book = init_codebook(keys[1], shape, sizes)
    quantized = quantizer.quantize(z, book, depth=depth, sizes=sizes, temperature=0.7)
    probs = np.asarray(quantized.soft, np.float64)

    def entropy(p):
        return -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=-1)

    expected = np.mean(entropy(probs).mean(0) - entropy(probs.mean(0)))
    found = variants.assignment_entropy(z, quantized.sums, book.embedding, 0.7, sizes)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_entropy_regularisation_trains_and_reaches_the_encoder_alone():
    model, variables, images = make({})
    z = run(model, variables, "encode", images)

    def entropy(variables, z):
        return model.apply(variables, z, 1.0, method="assignment_entropy")

    to_variables, to_z = jax.grad(entropy, (0, 1))(variables, z)
    assert np.abs(to_z).max() > 0 and np.isfinite(to_z).all()
    assert all(np.all(g == 0) for g in jax.tree.leaves(to_variables))
    losses, _ = train(model, variables, images, steps=12, entropy_weight=0.1)
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
