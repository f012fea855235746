# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every weight in a loss changes the loss and its gradient as it should."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stages_test import BATCH, make_stage, one_device, tiny

from rq.config import default
from rq.models import quantizer
from rq.models.codebook import Update
from rq.parallel import sharding
from rq.training import losses
from rq.training.stages import RQVAEStage
from rq.training.stages.adversary import Adversary


def close(a, b, scale=1e-5):
    """Trees of gradients, to a fraction of their largest number."""
    largest = max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(b))
    assert largest > 0
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, 1e-3, scale * largest), a, b
    )


def affine(trees, weights):
    """The sum of trees with weights."""
    return jax.tree.map(
        lambda *xs: sum(w * x for w, x in zip(weights, xs, strict=True)), *trees
    )


# Stage 1


@pytest.mark.slow
def test_stage_1_weighs_commitment_entropy_and_perceptual_loss():
    """Against the gradient of the loss written out, its constants held constant."""
    config = default()
    config.data.resolution = 8
    config.rqvae.adversarial.weight = 0.0
    loss = config.rqvae.loss
    loss.perceptual, loss.perceptual_weight = "features", 0.7
    loss.commitment_weight, loss.entropy_weight = 0.3, 2.0
    loss.entropy_temperature = 1.0
    config.features.model.widths, config.features.model.convs = (8,), (1,)
    model = config.rqvae.model
    model.ch, model.ch_mult, model.num_res_blocks = 32, (1,), 1
    model.attn_resolutions, model.z_channels, model.embed_dim = (), 8, 4
    model.code_shape, model.num_codes = (8, 8, 2), (16,)
    model.restart_codes = False
    stage = RQVAEStage(config, one_device(), lambda: iter([]))
    state = sharding.unbox(jax.jit(stage.init)(jax.random.key(1)))
    images = jax.random.uniform(jax.random.key(3), (4, 8, 8, 3), minval=-1)

    @jax.jit
    def both(state):
        found, _, metrics = stage.gradients(state, {"image": images}, jax.random.key(2))

        def encode(params):
            variables = {"params": params, "codebook": state.codebook}
            return variables, stage.model.apply(variables, images, method="encode")

        z = encode(state.params)[1]
        update = Update(decay=jnp.asarray(model.decay), restart=False)
        book = state.codebook["state"]
        sums = quantizer.quantize(z, book, depth=2, update=update).sums
        offset = sums[-1] - z

        def expected(params):
            variables, z = encode(params)
            outputs = stage.model.apply(variables, z + offset, method="decode")
            distance = stage.distance.apply(
                {"params": state.frozen["distance"]}, images, outputs
            )
            entropy = stage.model.apply(variables, z, 1.0, method="assignment_entropy")
            value = jnp.mean((outputs - images) ** 2) + 0.7 * jnp.mean(distance)
            return value + 0.3 * jnp.mean((z - sums) ** 2) + 2.0 * entropy

        return found["generator"], metrics, jax.value_and_grad(expected)(state.params)

    found, metrics, (value, expected) = both(state)
    close(found, expected, 1e-4)
    assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-4)
    for name in ("commitment", "entropy", "perceptual"):
        assert abs(float(metrics[f"loss/{name}"])) > 1e-3


# The discriminator


def adversary_gradients(weights, means=(0.3, -0.2)):
    """Gradients, the state after and its parts, of a small discriminator."""
    options = default().rqvae.adversarial
    options.ndf, options.layers, options.start = 4, 1, 0
    options.update(weights)
    adversary = Adversary(options, 10)
    real, fake = jax.random.uniform(jax.random.key(1), (2, 3, 12, 12, 3), minval=-1)
    state = sharding.unbox(adversary.init(jax.random.key(0), real))
    state["means"] = {"real": jnp.asarray(means[0]), "fake": jnp.asarray(means[1])}
    found = jax.jit(adversary.gradients)(state, 0, real, fake)
    return types.SimpleNamespace(
        at_fake=found[0], grads=found[1], moved=found[2], metrics=found[3],
        module=adversary.module, state=state, real=real, fake=fake,
    )  # fmt: skip


NOTHING = dict(weight=1e-9, lecam_weight=0.0, r1_weight=0.0)


def logits(found, params, images):
    """Returns logits of the discriminator in training, with the batch's statistics."""
    variables = {"params": params, "batch_stats": found.state["batch_stats"]}
    return found.module.apply(variables, images, train=True, mutable=["batch_stats"])[0]


@pytest.mark.parametrize(
    "weights, loss",
    [
        (
            dict(weight=0.8),
            lambda real, fake, slope: 0.8 * losses.discriminator(real, fake, "hinge"),
        ),
        (
            dict(lecam_weight=0.4),
            lambda real, fake, slope: (
                0.4 * (jnp.mean((real + 0.2) ** 2) + jnp.mean((fake - 0.3) ** 2))
            ),
        ),
        (
            dict(r1_weight=3.0),
            lambda real, fake, slope: 1.5 * jnp.mean(jnp.sum(slope**2, (1, 2, 3))),
        ),
    ],
    ids=["weight", "lecam", "r1"],
)
def test_the_discriminators_losses_are_weighed(weights, loss):
    found = adversary_gradients(NOTHING | weights)

    def expected(params):
        slope = jax.grad(lambda x: jnp.sum(logits(found, params, x)))(found.real)
        both = (logits(found, params, x) for x in (found.real, found.fake))
        return loss(*both, slope)

    close(found.grads, jax.jit(jax.grad(expected))(found.state["params"]), 1e-4)


def test_the_generators_gradient_and_the_moving_means():
    found = adversary_gradients(NOTHING | dict(weight=0.8))
    params = found.state["params"]
    real, fake = (logits(found, params, x) for x in (found.real, found.fake))
    assert float(found.metrics["loss/generator"]) == pytest.approx(-float(fake.mean()))
    # Without any weight: stage 1 gives it the adaptive one.
    expected = jax.grad(lambda x: -jnp.mean(logits(found, params, x)))(found.fake)
    close(found.at_fake, expected, 1e-4)
    for name, value, before in (("real", real, 0.3), ("fake", fake, -0.2)):
        mean = 0.99 * before + 0.01 * float(value.mean())
        assert float(found.moved["means"][name]) == pytest.approx(mean, rel=1e-5)


# Stage 2


def transformer(**changes):
    """A tiny stage without dropout, its state, its batch."""
    config = tiny()
    for name, value in changes.items():
        section, _, field = name.partition("__")
        config.transformer[section][field] = value
    if "text__weight" in changes:
        config.transformer.condition = "text"
        config.transformer.text.vocab_size, config.transformer.text.length = 11, 5
    for stack in (config.transformer.model.body, config.transformer.model.head):
        stack.residual_dropout = 0.0
    stage, batch = make_stage("transformer", config, one_device())
    batch["text"] = np.arange(BATCH * 5, dtype=np.int32).reshape(BATCH, 5) % 11
    state = sharding.unbox(jax.jit(stage.init)(jax.random.key(0)))
    return stage, state, batch


def transformer_gradients(**changes):
    stage, state, batch = transformer(**changes)
    grads, _, metrics = jax.jit(stage.gradients)(state, batch, jax.random.key(3))
    return grads, metrics


@pytest.mark.slow
def test_the_z_loss_is_added_to_the_loss_and_its_gradient():
    hard = dict(loss__soft_targets=False, loss__stochastic_codes=False)
    plain, plain_metrics = transformer_gradients(**hard)
    weighed, metrics = transformer_gradients(**hard, loss__z_weight=0.5)
    assert "loss/z" not in plain_metrics and metrics["loss/z"] > 1
    expected = plain_metrics["loss"] + 0.5 * metrics["loss/z"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)

    stage, state, batch = transformer(**hard)

    def z_loss(params):
        embedding = state.codebook["state"].embedding
        found = stage.model.apply(
            {"params": params}, batch["codes"], batch["label"], embedding
        )
        return jnp.mean(jax.nn.logsumexp(found, axis=-1) ** 2)

    added = affine((weighed, plain), (1, -1))
    close(added, affine((jax.jit(jax.grad(z_loss))(state.params),), (0.5,)), 1e-4)


@pytest.mark.slow
def test_the_weight_of_text_shares_the_gradient_with_the_image():
    found = [transformer_gradients(text__weight=w)[0] for w in (0.0, 1.0, 0.3)]
    close(found[2], affine(found[:2], (0.7, 0.3)), 1e-4)
    body = found[0]["condition_classifier"]["kernel"]
    assert not body.any()  # the image's loss does not see the text's logits


@pytest.mark.slow
def test_randomness_of_a_step_follows_its_number():
    """Two steps at the same parameters, of one key: other codes, another dropout."""
    config = tiny()
    stage, batch = make_stage("transformer", config, one_device())
    state = sharding.unbox(jax.jit(stage.init)(jax.random.key(0)))
    step = jax.jit(stage.train_step)
    losses_of = [
        float(step(state.replace(step=jnp.asarray(n)), batch)[1]["loss"])
        for n in (0, 0, 1, 2)
    ]
    assert losses_of[0] == losses_of[1] and len(set(losses_of)) == 3
