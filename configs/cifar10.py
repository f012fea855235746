# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10, 32 x 32 in colour, class-conditional: small enough for one GPU.

    rq prepare --config=configs/cifar10.py
    rq train --config=configs/cifar10.py --workdir=RUN

Data: TFDS `cifar10`, 50,000 training and 10,000 validation images; `rq prepare`
downloads 163 MiB. Codes: 8 x 8 x 4 from 1,024. Not in the paper; not run yet.

The perceptual loss uses the features of a network trained on the ten classes.
"""

from rq.config import choose_variant, default

NUM_EXAMPLES = 50_000


def get_config(variant=""):
    """Returns the config, with all four stages; there are no variants."""
    choose_variant(variant, {"": None})
    config = default()
    config.stages = ("features", *config.stages)

    data = config.data
    data.name = "cifar10"
    data.eval_split = "test"
    data.resolution = 32
    data.num_classes = 10
    data.augment = "flip"
    data.threads = 8

    config.features.steps = 10 * NUM_EXAMPLES // config.features.batch_size

    rqvae = config.rqvae
    rqvae.batch_size = 128
    rqvae.steps = 100 * NUM_EXAMPLES // rqvae.batch_size
    rqvae.model.ch_mult = (1, 2, 2)
    rqvae.model.attn_resolutions = (8,)
    rqvae.model.num_codes = (1024,)
    rqvae.loss.perceptual = "features"
    rqvae.loss.perceptual_weight = 0.1
    rqvae.adversarial.start = rqvae.steps // 2
    for optimizer in (rqvae.optimizer, rqvae.adversarial.optimizer):
        optimizer.learning_rate = 2e-4
        optimizer.warmup_steps = 500

    transformer = config.transformer
    transformer.batch_size = 256
    transformer.steps = 200 * NUM_EXAMPLES // transformer.batch_size
    transformer.condition = "class"
    transformer.model.width = 512
    transformer.model.body.layers = 12
    transformer.model.body.heads = 8
    transformer.model.head.layers = 4
    transformer.model.head.heads = 8
    transformer.model.dtype = "bfloat16"
    transformer.loss.temperature = 0.1

    config.sampling.top_p = (0.95,)
    return config
