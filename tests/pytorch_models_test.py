# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The PyTorch models that benchmarks compare with compute what ours do."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rq.models import RQVAE, RQTransformer, StackConfig, quantizer

torch = pytest.importorskip("torch", exc_type=ImportError)
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "benchmarks"))
from pytorch import rqvae, transformer  # noqa: E402

SIZES = dict(code_shape=(3, 3, 2), width=32, input_dim=8)


@pytest.fixture(scope="module")
def models():
    """Returns both models with equal weights, our variables, and a codebook."""
    stack = {name: StackConfig(2, 4) for name in ("body", "head")}
    ours = RQTransformer(**SIZES, num_codes=(16,), num_conditions=5, **stack)
    codebook = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    codes = jnp.zeros((1, 3, 3, 2), jnp.int32)
    variables = ours.init(jax.random.key(0), codes, None, codebook)
    theirs = transformer.RQTransformer(
        **SIZES, num_codes=16, num_classes=5, body_layers=2, head_layers=2, heads=4
    )
    transformer.load_flax(theirs, ours, variables)
    return ours, theirs.eval(), variables, codebook


def test_transformers_of_equal_weights_have_equal_logits(models):
    ours, theirs, variables, codebook = models
    rng = np.random.default_rng(1)
    codes, classes = rng.integers(16, size=(4, 3, 3, 2)), rng.integers(5, size=4)
    expected = ours.apply(variables, codes, classes, codebook)
    with torch.no_grad():
        found = theirs(*map(torch.from_numpy, (codes, classes, codebook)))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_a_cache_by_concatenation_gives_the_same_outputs(models):
    _, theirs, _, _ = models
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, _ = theirs.body_transformer(x)
        caches, found = None, []
        for position in range(9):
            y, caches = theirs.body_transformer(x[:, position : position + 1], caches)
            found.append(y)
    np.testing.assert_allclose(torch.cat(found, dim=1), expected, atol=1e-5)


def test_soft_targets_are_equal_for_equal_codes(models):
    codebook = models[-1]
    z = np.random.default_rng(2).normal(size=(4, 3, 3, 8)).astype(np.float32)
    codes, soft = transformer.stochastic_codes(
        torch.from_numpy(z), torch.from_numpy(codebook), depth=2, temperature=0.5
    )
    book = quantizer.Codebook(jnp.asarray(codebook), None, None)
    expected = quantizer.soft_codes(z, codes.numpy(), book, temperature=0.5)
    np.testing.assert_allclose(soft, expected, atol=1e-5)


def test_rq_vaes_of_equal_weights_have_equal_outputs_and_move_their_codebooks_alike():
    sizes = dict(
        resolution=16,
        image_channels=3,
        ch=32,
        ch_mult=(1, 2),
        num_res_blocks=1,
        attn_resolutions=(8,),
        z_channels=8,
        embed_dim=8,
    )
    ours = RQVAE(
        **sizes,
        code_shape=(8, 8, 2),
        num_codes=(16,),
        restart_codes=False,  # which draws random vectors
    )
    images = np.random.default_rng(3).uniform(-1, 1, (4, 16, 16, 3)).astype(np.float32)
    variables = ours.init(jax.random.key(1), images)
    used = variables["codebook"]["state"].replace(counts=jnp.full(16, 40.0))
    variables = {**variables, "codebook": {"state": used}}
    theirs = rqvae.RQVAE(**sizes, depth=2, num_codes=16)
    rqvae.load_flax(theirs, ours, variables)
    (outputs, codes, loss), moved = ours.apply(
        variables, images, train=True, mutable=["codebook"]
    )
    with torch.no_grad():
        found = theirs(torch.from_numpy(images).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(found[1], codes)
    np.testing.assert_allclose(found[0].permute(0, 2, 3, 1), outputs, atol=1e-4)
    np.testing.assert_allclose(found[2], loss, rtol=1e-4)
    np.testing.assert_allclose(
        theirs.codebook.weight, moved["codebook"]["state"].embedding, atol=1e-4
    )
