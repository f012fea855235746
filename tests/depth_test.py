# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Fewer depths than the model has: likelihoods, sampling, and training for it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compression_test import folder, model  # noqa: F401
from sampling_test import logits_of, tiny
from stages_test import BATCH, make_stage, one_device
from stages_test import tiny as tiny_config

import rq
from rq.cli import program as commands
from rq.config import ConfigError, SamplingConfig
from rq.flops import program_flops
from rq.models.unroll import unroll
from rq.parallel import sharding
from rq.sampling import Sampler, likelihood, program
from rq.sampling.sampler import Wanted

KEY = jax.random.key(0)
VARIANTS = [
    {},
    dict(num_codes=(8, 5), shared_classifier=False),
    dict(body_from_codebook=False, shared_token_embedding=False),
    dict(any_order=True),
]


def random_codes(batch):
    return jax.random.randint(jax.random.key(2), (batch, 2, 3, 2), 0, 5)


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda x: ",".join(x) or "paper")
def test_decoding_the_first_depths_equals_their_full_forward_pass(changes):
    transformer, params, codebook = tiny(**changes)
    codes, cond = random_codes(3)[..., :1], jnp.array([1, 4, 0])
    full = logits_of(transformer, params, codes, cond, codebook)
    kept, logits = program.sample(
        transformer,
        params,
        codebook,
        cond,
        KEY,
        codes=codes,
        keep=True,
        return_logits=True,
    )
    np.testing.assert_array_equal(kept, codes)
    np.testing.assert_allclose(logits, full, 1e-4, 1e-4)


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda x: ",".join(x) or "paper")
def test_reading_fewer_depths_equals_there_being_no_more(changes):
    transformer, params, codebook = tiny(**changes)
    codes, cond = random_codes(2), jnp.array([1, 4])

    def by_code(codes, depths=None):
        outputs, _ = transformer.apply(
            {"params": params}, codes, cond, codebook, depths=depths, method="outputs"
        )
        return transformer.apply({"params": params}, outputs, method="logits")

    cut = by_code(codes, jnp.array([1, 2]))
    first = by_code(codes[:1, ..., :1].repeat(2, 0))
    np.testing.assert_allclose(cut[0, :, :1], first[0], 1e-5, 1e-5)
    np.testing.assert_allclose(cut[1], by_code(codes)[1], 1e-5, 1e-5)
    assert not np.allclose(cut[0], by_code(codes)[0], atol=1e-3)


def test_likelihoods_of_the_first_depth_sum_to_1():
    transformer, params, codebook = tiny(code_shape=(1, 2, 2), num_codes=(3,))
    pairs = np.array(list(itertools.product(range(3), repeat=2)), np.int32)
    codes = pairs.reshape(-1, 1, 2, 1)
    cond = jnp.zeros(len(codes), jnp.int32)
    found = likelihood.log_likelihood(transformer, params, codebook[:3], codes, cond)
    np.testing.assert_allclose(np.exp(found.sum((1, 2, 3))).sum(), 1, rtol=1e-5)


def test_the_first_codes_are_drawn_as_if_there_were_no_deeper_ones():
    """The first position's are those of all depths; later ones follow other inputs."""
    transformer, params, codebook = tiny()
    cond = jnp.array([1, 4, 0])
    arguments = (transformer, params, codebook, cond, KEY)
    deep, shallow = program.sample(*arguments), program.sample(*arguments, depth=1)
    assert shallow.shape == (3, 2, 3, 1)
    np.testing.assert_array_equal(shallow[:, 0, 0], deep[:, 0, 0, :1])
    logits = logits_of(transformer, params, shallow, cond, codebook)
    greedy = program.sample(
        *arguments, depth=1, filters={"temperature": jnp.full(2, 1e-6)}
    )
    logits = logits_of(transformer, params, greedy, cond, codebook)
    np.testing.assert_array_equal(greedy, logits.argmax(-1))


def test_fewer_depths_are_fewer_steps():
    transformer, params = unroll(*tiny()[:2])
    codebook = tiny()[2]

    def flops(depth):
        def draw(params):
            return program.sample(
                transformer, params, codebook, None, KEY, batch=2, depth=depth
            )

        return program_flops(jax.jit(draw).trace(params).jaxpr)

    one, two = flops(1), flops(None)
    assert 0.4 * two < one < 0.7 * two  # half of the head, all of the body


# The sampler, the library, the command


def test_images_are_those_of_the_codes_drawn(model):  # noqa: F811
    sampler, config = model.models.sampler, SamplingConfig(depth=1, batch_size=2)
    images, codes = sampler.sample(np.array([0, 1, 2]), 3, config, dtype=np.uint8)
    assert codes.shape == (3, 4, 4, 1)
    np.testing.assert_array_equal(images, model.decode(codes))
    given = model.sample(num_samples=3, depth=1, top_k=0)
    np.testing.assert_array_equal(given, images)


def test_completion_keeps_the_first_codes(model):  # noqa: F811
    image = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    found = model.complete(image, "bottom", classes=1, depth=1)
    kept = model.reconstruct(image, depth=1)
    assert found.shape == kept.shape
    np.testing.assert_array_equal(
        model.complete(image, keep_depth=1, classes=1, depth=1), kept
    )


def test_samples_are_written_with_their_depths(folder, tmp_path):  # noqa: F811
    out = tmp_path / "samples.npz"
    args = ["sample", str(folder), "--num_samples=3", f"--out={out}"]
    commands.main([*args, "--depth=1"])
    with np.load(out) as written:
        assert written["codes"].shape == (3, 4, 4, 1)
        np.testing.assert_array_equal(
            written["arr_0"], rq.load(folder).decode(written["codes"])
        )


def test_more_depths_than_the_model_has_are_refused(model):  # noqa: F811
    with pytest.raises(ConfigError, match="sampling.depth = 3: the model has 2"):
        model.sample(depth=3)
    with pytest.raises(ConfigError, match="sampling.depth = -1"):
        model.sample(depth=-1)
    transformer, params, codebook = tiny()
    state = type("State", (), {"embedding": codebook})
    variables = {"params": params, "codebook": {"state": state}}
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    sampler = Sampler(transformer, variables, None, None, mesh=mesh)
    wanted = [Wanted(np.int32(0), 0, SamplingConfig(depth=1))]
    with pytest.raises(ConfigError, match="sampling.depth: all depths are drawn"):
        list(sampler.by_row(wanted, 1))


# Training


def test_a_fraction_of_images_is_read_to_each_depth():
    config = tiny_config()
    config.transformer.depth_dropout = 0.5
    stage, _ = make_stage("transformer", config, one_device())
    depths = np.asarray(stage.drawn_depths(4000, KEY))
    np.testing.assert_allclose(np.mean(depths == 1), 0.25, atol=0.03)
    assert set(depths.tolist()) == {1, 2}
    config.transformer.depth_dropout = 0.0
    assert stage.drawn_depths(4000, KEY) is None


@pytest.mark.slow
def test_depth_dropout_is_trained_with():
    """Dropping all images to a drawn depth gives the loss of these depths."""
    losses = []
    for fraction in (0.0, 1.0):
        config = tiny_config()
        config.transformer.depth_dropout = fraction
        for stack in (config.transformer.model.body, config.transformer.model.head):
            stack.residual_dropout = 0.0
        stage, batch = make_stage("transformer", config, one_device())
        params = sharding.unbox(stage.init(KEY).params)
        # Else next to nothing is read from codes at first.
        params["body_input"] = jax.tree.map(lambda x: 20 * x, params["body_input"])
        codebook = stage.rqvae_variables["codebook"]
        loss, metrics = stage.loss(params, codebook, batch, KEY)
        losses.append([float(metrics[f"loss/depth_{d}"]) for d in (1, 2)])
    assert np.isfinite(losses).all() and len(batch["codes"]) == BATCH
    assert (np.abs(np.subtract(*losses)) > 1e-5).all()
