# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Your own images, at 64, 128 or 256 pixels: a folder, tar shards or a table of files.

rq prepare --config=configs/folder.py:64 --config.data.path=DIR
rq train --config=configs/folder.py:64 --config.data.path=DIR --workdir=RUN
"""

from rq.config import choose_variant, default


def get_config(variant=""):
    """Returns the config of variant '64', '128', '' (256 pixels) or 'lpips' (256)."""
    set_size = choose_variant(
        variant, {"64": _set_64, "128": _set_128, "": _set_256, "lpips": _set_256}
    )
    config = default()
    config.data.name = "folder"
    config.data.augment = "resized_crop_flip"
    if variant == "lpips":
        config.rqvae.loss.perceptual = "lpips"
    else:  # there may be no classes to learn
        config.stages = ("features", *config.stages)
        config.features.objective = "rotation"
        config.rqvae.loss.perceptual = "features"
    config.transformer.condition = "auto"
    config.transformer.condition_dropout = 0.1
    set_size(config)
    return config


def _set_64(config):
    config.data.resolution = 64
    config.data.holdout = 200

    features = config.features
    features.batch_size = 32
    features.steps = 600
    features.model.widths = (16, 32, 64)
    features.model.convs = (1, 1, 1)

    rqvae = config.rqvae
    rqvae.batch_size = 8
    rqvae.steps = 8_000
    rqvae.model.ch = 32
    rqvae.model.ch_mult = (1, 1, 2, 4)
    rqvae.model.num_res_blocks = 1
    rqvae.model.attn_resolutions = ()
    rqvae.model.z_channels = 64
    rqvae.model.embed_dim = 64
    rqvae.model.num_codes = (1024,)
    rqvae.loss.perceptual_weight = 0.1
    rqvae.adversarial.weight = 0.0
    rqvae.optimizer.learning_rate = 1e-3
    rqvae.optimizer.warmup_steps = 100
    rqvae.optimizer.min_learning_rate = 0.0

    transformer = config.transformer
    transformer.batch_size = 8
    transformer.steps = 10_000
    transformer.text.vocab_size = 4096
    transformer.text.length = 24
    _set_stacks(transformer.model, width=192, body=6, head=1, heads=6)
    transformer.loss.temperature = 0.02  # see configs/emoji.py
    transformer.optimizer.learning_rate = 1e-3
    transformer.optimizer.warmup_steps = 100

    config.sampling.top_p = (0.9,)
    config.checkpoint.every = 500
    config.log.eval_every = 2000


def _set_128(config):
    config.data.resolution = 128
    config.data.threads = 8

    rqvae = config.rqvae
    rqvae.batch_size = 32
    rqvae.steps = 60_000
    rqvae.model.ch = 64
    rqvae.model.ch_mult = (1, 1, 2, 2, 4)
    rqvae.model.num_codes = (2048,)
    rqvae.model.dtype = "bfloat16"
    rqvae.adversarial.start = 20_000
    for optimizer in (rqvae.optimizer, rqvae.adversarial.optimizer):
        optimizer.learning_rate = 2e-4
        optimizer.warmup_steps = 1000

    transformer = config.transformer
    transformer.batch_size = 64
    transformer.steps = 100_000
    _set_stacks(transformer.model, width=512, body=12, head=4, heads=8)
    transformer.model.dtype = "bfloat16"
    transformer.optimizer.warmup_steps = 1000

    config.sampling.top_p = (0.95,)
    config.log.eval_every = 5000


def _set_256(config):
    config.data.threads = 16

    rqvae = config.rqvae
    rqvae.model.num_codes = (2048,)
    rqvae.model.attn_resolutions = (16,)
    rqvae.steps = 70_000
    rqvae.optimizer.warmup_steps = 1000

    transformer = config.transformer
    transformer.batch_size = 128
    transformer.steps = 90_000
    _set_stacks(transformer.model, width=1024, body=24, head=4, heads=16)
    transformer.model.dtype = "bfloat16"

    config.sampling.top_k = (250,)


def _set_stacks(model, *, width: int, body: int, head: int, heads: int):
    model.width = width
    for stack, layers in ((model.body, body), (model.head, head)):
        stack.layers = layers
        stack.heads = heads
