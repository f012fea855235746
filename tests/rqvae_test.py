# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The RQ-VAE as one module: shapes, gradients, and where the codebook lives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from authors_test import weights

from rq.models import RQVAE


def make(**changes):
    """An RQ-VAE of 8 x 8 images, its unboxed variables and two images."""
    settings = dict(
        resolution=8,
        image_channels=1,
        ch=32,
        ch_mult=(1, 1),
        num_res_blocks=1,
        attn_resolutions=(),
        z_channels=8,
        embed_dim=4,
        code_shape=(4, 4, 3),
        num_codes=(8,),
    )
    model = RQVAE(**(settings | changes))
    shape = (2, 8, 8, model.image_channels)
    images = jax.random.uniform(jax.random.key(1), shape, minval=-1)
    return model, weights(model), images


@pytest.mark.parametrize(
    "changes, embedding",
    [
        ({}, (8, 4)),
        pytest.param(dict(code_shape=(2, 2, 3)), (8, 16), marks=pytest.mark.slow),
        pytest.param(dict(code_shape=(4, 2, 3)), (8, 8), marks=pytest.mark.slow),
        (dict(shared_codebook=False, num_codes=(8, 5, 3)), (3, 8, 4)),
        pytest.param(
            dict(image_channels=3, dtype="bfloat16"), (8, 4), marks=pytest.mark.slow
        ),
    ],
    ids=["paper", "packed", "packed one way", "own codebooks", "bfloat16"],
)
def test_shapes_and_dtypes_of_every_method(changes, embedding):
    model, variables, images = make(**changes)
    assert variables["codebook"]["state"].embedding.shape == embedding

    def apply(method, *args):
        return jax.jit(lambda v, *a: model.apply(v, *a, method=method))(
            variables, *args
        )

    z = apply("encode", images)
    assert z.shape == (2, 4, 4, 4) and z.dtype == jnp.float32
    quantized, codes, commitment = apply("quantize", z)
    assert quantized.shape == z.shape and commitment.shape == ()
    assert codes.shape == (2, *model.code_shape) and codes.dtype == jnp.int32
    outputs = apply("decode", quantized)
    assert outputs.shape == images.shape and outputs.dtype == jnp.float32
    np.testing.assert_allclose(outputs, apply("decode_codes", codes), atol=0.02)
    np.testing.assert_array_equal(apply("codes", images), codes)


def test_training_returns_the_codebook_and_evaluation_leaves_it():
    model, variables, images = make()
    apply = functools.partial(model.apply, mutable=["codebook"])
    train = jax.jit(functools.partial(apply, train=True))
    _, updated = train(variables, images, rngs={"codebook": jax.random.key(0)})
    before, after = variables["codebook"]["state"], updated["codebook"]["state"]
    assert (before.embedding != after.embedding).any()
    _, left = jax.jit(apply)(variables, images)
    jax.tree.map(np.testing.assert_array_equal, left["codebook"], variables["codebook"])


def test_gradients_reach_the_encoder_through_the_codes():
    model, variables, images = make()

    def loss(params):
        outputs, _, _ = model.apply({**variables, "params": params}, images)
        return jnp.mean((outputs - images) ** 2)

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    for name in ("encoder", "quant_conv", "post_quant_conv", "decoder"):
        assert any(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients[name])), name


@pytest.mark.parametrize("depth", [0, 4])
def test_decoding_at_an_impossible_depth_is_refused(depth):
    model, variables, _ = make()
    codes = jnp.zeros((1, 4, 4, 3), jnp.int32)
    with pytest.raises(ValueError, match="depth"):
        model.apply(variables, codes, depth, method="decode_codes")


def test_codes_of_another_shape_are_refused():
    model, variables, _ = make()
    codes = jnp.zeros((1, 2, 2, 3), jnp.int32)
    with pytest.raises(ValueError, match="codes"):
        model.apply(variables, codes, method="decode_codes")
