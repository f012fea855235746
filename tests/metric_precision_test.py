# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Products behind reported numbers are at the highest precision, on every backend.

By default a TPU multiplies float32 in bfloat16 and a GPU in TF32. A CPU shows no
difference, so that the lowered programs are read.
"""

import types

import jax
import jax.numpy as jnp
from stage_one_test import SMALL, one_device, reduced_imagenet

from rq.evaluation import extractors
from rq.evaluation.reconstruction import make_reconstructor
from rq.experiment import Experiment
from rq.metrics.image_quality import ssim
from rq.models.networks.inception import Inception
from rq.models.networks.lpips import PerceptualDistance
from rq.models.networks.resnet import ResNet, preprocess
from rq.parallel import sharding
from rq.sampling import classifier
from rq.training.stages import FeaturesStage, RQVAEStage

PRODUCTS = ("stablehlo.convolution", "stablehlo.dot_general", "chlo.dot")


def products(function, *args) -> list[bool]:
    """Whether each convolution and matrix product of a function has the highest."""
    text = jax.jit(function).lower(*args).as_text()
    lines = [line for line in text.splitlines() if any(p in line for p in PRODUCTS)]
    return [line.count("HIGHEST") == 2 for line in lines]


def network(module, *shapes):
    """`products` of a module on images of these shapes."""
    images = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    variables = jax.eval_shape(module.init, jax.random.key(0), *images)
    return products(module.apply, sharding.unbox(variables), *images)


def test_the_networks_of_metrics():
    found = network(Inception(), (1, 299, 299, 3))
    assert all(found) and len(found) == 95
    found = network(ResNet((1, 1, 1, 1), True, 5), (1, 224, 224, 3))
    assert all(found) and len(found) == 1 + 4 * 4 + 1
    images = jax.ShapeDtypeStruct((1, 40, 40, 3), jnp.float32)
    assert all(products(preprocess, images))
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    assert products(ssim, images, images) == [True, True]


def test_lpips_is_exact_where_reported_and_free_in_training():
    distance = PerceptualDistance((4, 4), (1, 2))
    assert not any(network(distance, *2 * [(1, 8, 8, 3)]))
    config = reduced_imagenet(**SMALL)
    side = config.data.resolution
    stage = RQVAEStage(config, one_device(), lambda: iter([]))
    reconstructor = make_reconstructor(config, one_device())
    state = jax.eval_shape(stage.init, jax.random.key(0))
    variables, frozen = sharding.unbox((state.model_variables(), state.frozen))
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    scores = products(reconstructor._scores, variables, frozen, images)
    alone = products(reconstructor._outputs, variables, frozen, images)
    # Two networks of two convolutions and SSIM's two, for each of four depths.
    assert sum(scores) - sum(alone) == 4 * (2 * 2 + 2)
    assert len(scores) - sum(scores) == len(alone) - sum(alone)


def test_the_network_of_ones_own_features():
    config = reduced_imagenet(**SMALL)
    side = config.data.resolution
    stage = FeaturesStage(config, one_device(), lambda: iter([]))
    state = sharding.unbox(stage.init(jax.random.key(0)))
    variables = state.model_variables()
    batch = {
        "image": jnp.zeros((2, side, side, 3), jnp.uint8),
        "label": jnp.zeros(2, jnp.int32),
        "mask": jnp.ones(2, bool),
    }
    found = products(stage._sums, variables, batch)
    assert found == [True] * 3
    images = jnp.zeros((2, side, side, 3))
    assert not any(products(stage.model.apply, variables, images))

    experiment = types.SimpleNamespace(
        config=config, path="run", finished=lambda name: True, features_state=state
    )
    network = Experiment.feature_classifier(experiment)
    extractor = extractors.own(*network, config, one_device())
    found = products(extractor._apply, variables["params"], batch["image"])
    assert found == [True] * 3
    ranked = classifier.Classifier(*network)
    assert products(ranked._classify, variables["params"], images) == [True] * 3
