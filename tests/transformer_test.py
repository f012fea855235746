# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The transformer's structure: causality, scanned layers, rematerialisation, errors."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from authors_test import weights

from rq.models import RQTransformer, StackConfig, decoding
from rq.models.unroll import unroll
from rq.sampling import program


def make(**changes):
    """A 2 x 2 x 3 transformer, unboxed variables, codes, classes and a codebook."""
    stack = StackConfig(layers=2, heads=2)
    settings = dict(
        code_shape=(2, 2, 3),
        num_codes=(6,),
        input_dim=4,
        num_conditions=5,
        width=16,
        body=stack,
        head=stack,
    )
    model = RQTransformer(**(settings | changes))
    codes = jax.random.randint(jax.random.key(2), (2, 2, 2, 3), 0, 6)
    codebook = jax.random.normal(jax.random.key(1), (6, 4))
    shape = (2,) if model.condition_length == 1 else (2, model.condition_length)
    cond = jax.random.randint(jax.random.key(3), shape, 0, 5)
    return model, weights(model), (codes, cond, codebook)


def test_a_code_influences_exactly_the_codes_after_it():
    """In raster order, depth inside: nothing before it, and everything behind."""
    model, variables, (codes, cond, codebook) = make()
    forward = jax.jit(model.apply)
    before = forward(variables, codes, cond, codebook).reshape(2, 12, -1)
    for place in range(12):
        row, column, depth = np.unravel_index(place, (2, 2, 3))
        changed = codes.at[0, row, column, depth].add(1) % 6
        after = forward(variables, changed, cond, codebook).reshape(2, 12, -1)
        moved = np.abs(after - before).max(axis=-1) > 1e-7
        np.testing.assert_array_equal(moved[0], np.arange(12) > place)
        assert not moved[1].any()


def test_the_condition_influences_every_code():
    model, variables, (codes, cond, codebook) = make()
    forward = jax.jit(model.apply)
    before = forward(variables, codes, cond, codebook)
    after = forward(variables, codes, (cond + 1) % 5, codebook)
    assert (np.abs(after - before).max(axis=-1) > 1e-6).all()


def test_no_condition_is_the_start_token():
    model, variables, (codes, _, codebook) = make(num_conditions=1)
    zeros = jnp.zeros(2, jnp.int32)
    np.testing.assert_array_equal(
        jax.jit(model.apply)(variables, codes, None, codebook),
        jax.jit(model.apply)(variables, codes, zeros, codebook),
    )


def test_unrolled_layers_are_the_scanned_ones():
    model, variables, arguments = make()
    unrolled, params = unroll(model, variables["params"])
    assert unrolled.precision == "float32"
    assert set(params["body_stack"]) == {"blocks_0", "blocks_1"}
    np.testing.assert_allclose(
        jax.jit(unrolled.apply)({"params": params}, *arguments),
        jax.jit(model.apply)(variables, *arguments),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param(dict(shared_classifier=False), marks=pytest.mark.slow),
        pytest.param(
            dict(body_from_codebook=False, head_from_codebook=False),
            marks=pytest.mark.slow,
        ),
        pytest.param(dict(num_codes=(6, 4, 5)), marks=pytest.mark.slow),
    ],
    ids=["paper", "own classifiers", "learned embeddings", "two sizes"],
)
@pytest.mark.parametrize(
    ("precision", "nearly"), [("float32", 1e-5), ("bfloat16", 0.03), ("int8", 0.03)]
)
def test_weights_for_decoding_give_nearly_the_same_logits(precision, nearly, changes):
    """In units of the logits' own spread; int8 weights are stored as int8."""
    model, variables, arguments = make(**changes)
    expected = jax.jit(model.apply)(variables, *arguments)
    decoder, params = unroll(model, variables["params"], precision)
    found = jax.jit(decoder.apply)({"params": params}, *arguments)
    assert found.dtype == jnp.float32
    real = expected > -1e5  # of codes that exist
    error = jnp.std((found - expected)[real]) / jnp.std(expected[real])
    assert error < nearly and (precision == "float32" or error > 1e-4)
    weights = params["body_stack"]["blocks_0"]["attention"]["qkv"]["weight"]
    assert weights.dtype == precision


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_parameters_for_decoding_have_the_shapes_that_the_model_says(precision):
    model, variables, arguments = make()
    decoder, params = unroll(model, variables["params"], precision)
    boxed = jax.eval_shape(decoder.init, jax.random.key(0), *arguments)["params"]
    wanted = jax.tree.map(lambda x: (x.shape, x.dtype), nn.unbox(boxed))
    found = jax.tree.map(lambda x: (x.shape, x.dtype), params)
    assert found == wanted


@pytest.mark.parametrize(
    "remat", ["full", pytest.param("dots", marks=pytest.mark.slow)]
)
def test_rematerialisation_changes_no_gradient(remat):
    gradients = []
    for policy in ("none", remat):
        model, variables, arguments = make(remat=policy)

        def loss(params, model=model, arguments=arguments):
            logits = model.apply(
                {"params": params},
                *arguments,
                deterministic=False,
                rngs={"dropout": jax.random.key(0)},
            )
            return jnp.mean(jax.nn.logsumexp(logits, -1) ** 2)

        gradients.append(jax.jit(jax.grad(loss))(variables["params"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-6), *gradients)


def test_dropout_needs_its_key_and_changes_logits():
    model, variables, arguments = make()
    plain = jax.jit(model.apply)(variables, *arguments)
    forward = jax.jit(functools.partial(model.apply, deterministic=False))
    dropped = [
        forward(variables, *arguments, rngs={"dropout": jax.random.key(seed)})
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert (dropped[0] != dropped[2]).any() and (dropped[0] != plain).any()


def test_logits_are_float32_in_bfloat16_compute():
    model, variables, arguments = make(dtype="bfloat16")
    assert jax.jit(model.apply)(variables, *arguments).dtype == jnp.float32
    for leaf in jax.tree.leaves(variables):
        assert leaf.dtype == jnp.float32


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param(dict(head_from_codebook=False), marks=pytest.mark.slow),
        pytest.param(
            dict(head=StackConfig(layers=2, heads=2, norm="rms", qk_norm=True)),
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda changes: ",".join(changes) or "paper",
)
def test_decoding_rounds_to_bfloat16_where_the_full_pass_does(changes):
    """Equal to the bit, once XLA rounds wherever the program says so.

    By default it leaves roundings out inside of fusions, of which both have others.
    """
    model, variables, (_, cond, codebook) = make(dtype="bfloat16", **changes)
    params = dict(variables["params"])
    params["head_positions"] *= 20  # as large as what they are added to
    codes = jax.random.randint(jax.random.key(4), (2, 2, 2, 3), 0, 6)

    def both(params):
        full = model.apply({"params": params}, codes, cond, codebook)
        _, decoded = program.sample(
            model,
            params,
            codebook,
            cond,
            jax.random.key(0),
            codes=codes,
            keep=True,
            return_logits=True,
        )
        return full, decoded

    strict = {"xla_allow_excess_precision": False}
    full, decoded = jax.jit(both, compiler_options=strict)(params)
    np.testing.assert_allclose(decoded, full, rtol=0, atol=1e-6)
    exact = model.clone(dtype="float32").apply(
        {"params": params}, codes, cond, codebook
    )
    assert np.abs(full - exact).max() > 1e-3  # the roundings are there


def test_rms_norms_have_no_bias_and_heads_are_normalised_each():
    stack = StackConfig(layers=2, heads=2, norm="rms", qk_norm=True)
    _, variables, _ = make(body=stack)
    body = variables["params"]["body_stack"]["blocks"]
    assert set(body["norm1"]) == {"scale"}
    assert body["attention"]["query_norm"]["scale"].shape == (2, 8)  # [L, F]
    assert "query_norm" not in variables["params"]["head_stack"]["blocks"]["attention"]


def test_queries_and_keys_of_any_size_give_the_same_attention():
    """With `qk_norm` scaling both by a hundred changes nothing."""
    stack = StackConfig(layers=1, heads=2, qk_norm=True)
    model, variables, inputs = make(body=stack, head=stack)

    def scale(path, x):
        names = [part.key for part in path]
        large = {"query", "key"} & set(names)
        return 100 * x if large else x

    scaled = jax.tree_util.tree_map_with_path(scale, variables)
    forward = jax.jit(model.apply)
    expected = forward(variables, *inputs)
    np.testing.assert_allclose(forward(scaled, *inputs), expected, 1e-3, 1e-4)


@pytest.mark.slow
def test_scaled_initialisation_makes_what_layers_add_smaller():
    stack = StackConfig(layers=8, heads=2, scaled_init=True)
    _, plain, _ = make(body=StackConfig(layers=8, heads=2))
    _, scaled, _ = make(body=stack)
    plain, scaled = (v["params"]["body_stack"]["blocks"] for v in (plain, scaled))
    for part in ("attention.proj", "mlp_out"):
        a, b = plain, scaled
        for name in part.split("."):
            a, b = a[name], b[name]
        np.testing.assert_allclose(b["kernel"], a["kernel"] / 4, rtol=1e-5)
    np.testing.assert_array_equal(scaled["mlp_in"]["kernel"], plain["mlp_in"]["kernel"])


def test_codes_that_a_smaller_codebook_lacks_have_no_probability():
    model, variables, (codes, cond, _) = make(
        num_codes=(6, 3, 2), shared_classifier=False
    )
    codebook = jnp.ones((3, 6, 4))
    probs = jax.nn.softmax(model.apply(variables, codes % 2, cond, codebook))
    assert not np.asarray(probs)[..., 1, 3:].any()
    assert not np.asarray(probs)[..., 2, 2:].any()
    assert (np.asarray(probs)[..., 0, :] > 0).all()


def test_every_parameter_axis_has_a_name_in_the_rules():
    from rq.parallel.sharding import RULES

    stack = StackConfig(layers=1, heads=2)
    for own in (True, False):
        model = RQTransformer(
            code_shape=(2, 2, 3),
            num_codes=(6,),
            input_dim=4,
            width=16,
            body=stack,
            head=stack,
            num_conditions=5,
            condition_length=4,
            shared_classifier=own,
            shared_token_embedding=own,
            body_from_codebook=own,
        )
        boxed = jax.eval_shape(
            model.init,
            jax.random.key(0),
            jnp.zeros((1, 2, 2, 3), jnp.int32),
            None,
            jnp.zeros((6, 4)),
        )
        for leaf in jax.tree.leaves(boxed, is_leaf=lambda x: hasattr(x, "names")):
            assert set(leaf.names) <= set(dict(RULES)), leaf.names


@pytest.mark.parametrize(
    "shape, codebook, message",
    [
        ((2, 2, 2, 4), True, "codes"),
        ((2, 3, 2, 3), True, "codes"),
        ((2, 2, 2, 3), False, "codebook"),
    ],
)
def test_wrong_inputs_are_refused(shape, codebook, message):
    model, variables, (_, cond, book) = make()
    codes = jnp.zeros(shape, jnp.int32)
    with pytest.raises(ValueError, match=message):
        model.apply(variables, codes, cond, book if codebook else None)


def test_decoding_scanned_layers_is_refused():
    model, variables, (_, cond, _) = make()
    with pytest.raises(ValueError, match="unroll"):
        x, caches = model.apply(variables, cond, 2, method=decoding.start)
        model.apply(variables, x, caches, 0, method=decoding.position_step)
