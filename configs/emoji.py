# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Emoji, 64 x 64 in colour, drawn from an installed font: a good model on two cores.

    python -m rq.main --config=configs/emoji.py --workdir=runs/emoji

Needs the Debian packages fonts-noto-color-emoji and unicode-data. First a small network
learns to tell the nine classes apart; then stage 1 trains with the paper's losses,
reconstruction, commitment, perceptual (on that network's features) and adversarial.
`configs/emoji.py:nogan` leaves out the discriminator.
"""

from rq.config import choose_variant, default

NUM_EXAMPLES = 3_300


def get_config(variant=""):
    """Features and stage 1; variants '' and 'nogan'."""
    weight = choose_variant(variant, {"": 0.75, "nogan": 0.0})

    config = default()
    config.stages = ("features", "rqvae")

    data = config.data
    data.name = "emoji"
    data.resolution = 64
    data.num_classes = 9

    features = config.features
    features.batch_size = 32
    features.steps = 600
    features.model.widths = (16, 32, 64)
    features.model.convs = (1, 1, 1)

    rqvae = config.rqvae
    rqvae.batch_size = 8
    rqvae.steps = 4000
    model = rqvae.model
    model.ch = 32
    model.ch_mult = (1, 1, 2, 4)
    model.num_res_blocks = 1
    model.attn_resolutions = ()
    model.z_channels = 64
    model.embed_dim = 64
    model.code_shape = (8, 8, 4)
    model.num_codes = (1024,)
    rqvae.loss.perceptual = "features"
    rqvae.loss.perceptual_weight = 0.1
    adversarial = rqvae.adversarial
    adversarial.weight = weight
    adversarial.ndf = 32
    adversarial.start = 2000
    for optimizer in (rqvae.optimizer, adversarial.optimizer):
        optimizer.learning_rate = 1e-3
        optimizer.warmup_steps = 100
        optimizer.min_learning_rate = 0.0

    config.checkpoint.every = 500
    config.log.every = 50
    config.log.eval_every = 1000
    return config
