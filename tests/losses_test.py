# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Tests the losses of stage 1, and their gradient against finite differences."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rq.models.networks.discriminator import Discriminator
from rq.models.networks.lpips import PerceptualDistance, own_distance, unit
from rq.training import losses

WIDTHS, CONVS = (4, 8), (1, 2)


def images(seed, number=2, side=8, channels=3):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.uniform(-1, 1, (number, side, side, channels)), jnp.float32)


@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
def test_discriminator_loss_is_lower_for_better_logits(kind):
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(2, 3, 4, 4)).astype(np.float32)
    worse = losses.discriminator(real, fake, kind)
    assert losses.discriminator(real + 0.5, fake - 0.5, kind) < worse
    assert losses.generator(fake + 0.5) < losses.generator(fake)


def test_unknown_adversarial_loss_is_refused():
    with pytest.raises(ValueError, match="neither 'hinge' nor 'vanilla'"):
        losses.discriminator(jnp.zeros(1), jnp.zeros(1), "wgan")


def test_lecam_is_zero_where_logits_sit_at_each_others_means():
    real, fake = jnp.full((2, 3), 0.7), jnp.full((2, 3), -0.2)
    assert losses.lecam(real, fake, mean_real=-0.2, mean_fake=0.7) < 1e-12
    assert losses.lecam(real, fake, mean_real=0.7, mean_fake=-0.2) > 1


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_adaptive_weight_balances_the_two_gradients(a, b):
    """The scaled adversarial gradient has the norm of the other one."""
    rng = np.random.default_rng(0)
    fidelity, adversarial = rng.normal(size=(2, 3, 3, 4, 3)).astype(np.float32)
    fidelity, adversarial = a * fidelity, b * adversarial
    weight = losses.adaptive_weight(fidelity, adversarial, max_weight=1e9)
    lengths = np.linalg.norm(fidelity), np.linalg.norm(adversarial)
    np.testing.assert_allclose(weight * (lengths[1] + 1e-4), lengths[0], 1e-4)


def test_z_loss_sees_what_cross_entropy_does_not():
    logits = jax.nn.log_softmax(jnp.array([[1.0, 2.0, 3.0], [0.0, 0.5, -4.0]]))
    codes = jnp.array([0, 2])
    np.testing.assert_allclose(losses.square_normalizer(logits), 0, atol=1e-10)
    np.testing.assert_allclose(losses.square_normalizer(logits + 3), 9, rtol=1e-5)
    np.testing.assert_allclose(
        losses.cross_entropy(logits + 3, codes), losses.cross_entropy(logits, codes),
        rtol=1e-5,
    )  # fmt: skip


def test_soft_targets_are_constants():
    logits = jnp.array([[1.0, 2.0, 3.0]])
    targets = jnp.array([[0.2, 0.3, 0.5]])
    to_logits, to_targets = jax.grad(
        lambda x, y: jnp.sum(losses.soft_cross_entropy(x, y)), (0, 1)
    )(logits, targets)
    np.testing.assert_array_equal(to_targets, 0)
    np.testing.assert_allclose(to_logits, jax.nn.softmax(logits) - targets, rtol=1e-5)


def test_perceptual_distance_is_zero_at_itself_and_symmetric():
    module = PerceptualDistance(WIDTHS, CONVS)
    a, b = images(0), images(1)
    variables = jax.jit(module.init)(jax.random.key(0), a, b)
    distance = jax.jit(module.apply)
    np.testing.assert_allclose(distance(variables, a, a), 0, atol=1e-6)
    there, back = distance(variables, a, b), distance(variables, b, a)
    np.testing.assert_allclose(there, back, 1e-6)
    assert there.shape == (2,) and (there > 0).all()


def test_perceptual_gradient_is_finite_where_features_are_all_off():
    features = jnp.zeros((1, 2, 2, 4)).at[0, 0, 0].set(1.0)
    gradient = jax.grad(lambda x: jnp.sum(unit([x])[0] ** 2))(features)
    assert np.isfinite(gradient).all()
    module = PerceptualDistance(WIDTHS, CONVS)
    a = images(0)
    params = jax.jit(module.init)(jax.random.key(0), a, a)["params"]
    for block in params["network"].values():  # all features are 0
        block["bias"] = block["bias"].replace_boxed(
            jnp.full_like(block["bias"].value, -100)
        )
    gradient = jax.jit(
        jax.grad(lambda x: jnp.sum(module.apply({"params": params}, a, x)))
    )(a)
    np.testing.assert_array_equal(gradient, 0)


def test_own_distance_is_the_same_formula_with_heads_of_one():
    module = PerceptualDistance(WIDTHS, CONVS, image_channels=1)
    a, b = images(0, channels=1), images(1, channels=1)
    params = module.init(jax.random.key(0), a, b)["params"]
    own, own_params = own_distance(params["network"], WIDTHS, CONVS, 1)
    expected = sum(
        np.mean(np.sum((np.asarray(x) - np.asarray(y)) ** 2, -1), (1, 2))
        for x, y in zip(
            *(
                unit(module.apply({"params": params}, z, method="features"))
                for z in (a, b)
            ),
            strict=True,
        )
    )
    np.testing.assert_allclose(own.apply({"params": own_params}, a, b), expected, 1e-5)


def test_grey_images_are_repeated_for_a_network_of_three_channels():
    module = PerceptualDistance(WIDTHS, CONVS)
    a, b = images(0, channels=1), images(1, channels=1)
    variables = module.init(jax.random.key(0), a, b)
    colour = (jnp.repeat(x, 3, axis=-1) for x in (a, b))
    np.testing.assert_array_equal(
        module.apply(variables, a, b), module.apply(variables, *colour)
    )


def test_discriminator_refuses_images_that_leave_no_logit():
    with pytest.raises(ValueError, match="too small for 3 layers"):
        Discriminator(ndf=4, layers=3).init(jax.random.key(0), images(0, side=16))


@pytest.mark.parametrize(("side", "layers", "patches"), [(16, 2, 2), (32, 3, 2)])
def test_discriminator_has_a_logit_for_each_patch(side, layers, patches):
    module = Discriminator(ndf=4, layers=layers)
    shape = jax.eval_shape(
        lambda x: module.init_with_output(jax.random.key(0), x)[0], images(0, side=side)
    )
    assert shape.shape == (2, patches, patches)


DIFFERENCES = """
import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
import numpy as np
from rq import config as configs
from rq.models import quantizer
from rq.models.codebook import Update
from rq.parallel import sharding
from rq.training import losses
from rq.training.stages import RQVAEStage

config = configs.default()
config.data.resolution = 16
config.rqvae.loss.perceptual = "features"
config.rqvae.loss.perceptual_weight = 0.7
config.features.model.widths, config.features.model.convs = (8, 8), (1, 1)
config.rqvae.adversarial.ndf = 8
model = config.rqvae.model
model.ch, model.ch_mult, model.num_res_blocks = 32, (1, 1), 1
model.attn_resolutions, model.z_channels, model.embed_dim = (), 8, 4
model.code_shape, model.num_codes = (8, 8, 2), (16,)
model.restart_codes = False
model.dtype = "float64"
stage = RQVAEStage(config, sharding.make_mesh(), None)
state = sharding.unbox(stage.init(jax.random.key(0)))
def wide(tree):
    return jax.tree.map(lambda x: x.astype("float64"), tree)
adversary = state.adversary | {
    name: wide(state.adversary[name]) for name in ("params", "batch_stats", "means")}
state = state.replace(
    params=wide(state.params), adversary=adversary, frozen=wide(state.frozen))
key = jax.random.key(1)
images = jax.random.uniform(jax.random.key(2), (2, 16, 16, 3), "float64", -1, 1)
found, _, metrics = jax.jit(stage.gradients)(state, {"image": images}, key)
found = found["generator"]

# The loss whose gradient is taken. What the straight-through estimator, the codebook
# update and the adaptive weight treat as constant is constant here.
z = stage.model.apply(state.model_variables(), images, method="encode")
sums = quantizer.quantize(
    z, state.codebook["state"], depth=2,
    update=Update(decay=jnp.asarray(model.decay), restart=False),
).sums
offset = sums[-1] - z
discriminator = {k: state.adversary[k] for k in ("params", "batch_stats")}

@jax.jit
def loss(params):
    variables = {"params": params, "codebook": state.codebook}
    z = stage.model.apply(variables, images, method="encode")
    outputs = stage.model.apply(variables, z + offset, method="decode")
    logits, _ = stage.adversary.module.apply(
        discriminator, outputs, train=True, mutable=["batch_stats"])
    fidelity, _ = stage._fidelity(outputs, images, state.frozen)
    weight = config.rqvae.adversarial.weight * metrics["adaptive_weight"]
    commitment = jnp.mean((z - sums) ** 2)
    return fidelity + 0.25 * commitment - weight * jnp.mean(logits)

def inner(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))

worst = 0
for part in ("encoder", "decoder", "quant_conv", "post_quant_conv"):
    for seed in range(3):
        leaves, tree = jax.tree.flatten(state.params)
        keys = jax.tree.unflatten(
            tree, list(jax.random.split(jax.random.key(seed), len(leaves))))
        direction = jax.tree.map(
            lambda k, x: jax.random.normal(k, x.shape, "float64"), keys, state.params)
        direction = {
            name: jax.tree.map(lambda x: x * (name == part), branch)
            for name, branch in direction.items()}
        size = 1e-5 / jnp.sqrt(inner(direction, direction))
        moved = [jax.tree.map(lambda p, d: p + s * size * d, state.params, direction)
                 for s in (1, -1)]
        slope = (loss(moved[0]) - loss(moved[1])) / (2 * size)
        expected = inner(found, direction)
        worst = max(worst, abs(float(slope / expected) - 1))
print(worst)
assert worst < 1e-5, worst
"""


@pytest.mark.slow
def test_generator_gradient_is_that_of_finite_differences_in_float64():
    """Checks the sum of reconstruction, commitment, perceptual, adversarial losses."""
    result = subprocess.run(
        [sys.executable, "-c", DIFFERENCES], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
