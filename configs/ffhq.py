# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""FFHQ 256 x 256, faces without condition (paper section 4.1).

    python -m rq.main --config=configs/ffhq.py --workdir=DIR

Hardware: made for 8 GPUs or 8 TPU chips; not run yet. Data: 60,000 training images, the
other 10,000 for validation. Codes: 8 x 8 x 4 of 2,048.

Stage 1, 100,732,035 parameters with the codebook: batch 128, 150 epochs = 70,312 steps,
warm-up of 5 epochs. The authors add a perceptual and an adversarial loss.
Stage 2, 355,393,536 parameters: batch 128, 200 epochs = 93,750 steps, cosine to 0
without warm-up.

FID of the paper: 10.38, with top-k 250 and top-p 1.
"""

from rq.config import choose_variant, default

NUM_EXAMPLES = 60_000


def get_config(variant=""):
    """The paper's FFHQ model; no variants."""
    choose_variant(variant, {"": None})
    config = default()

    data = config.data
    data.name = "ffhq"
    data.augment = "resized_crop_flip"
    data.threads = 16

    rqvae = config.rqvae
    rqvae.batch_size = 128
    rqvae.steps = 150 * NUM_EXAMPLES // rqvae.batch_size
    rqvae.model.attn_resolutions = (16,)
    rqvae.model.num_codes = (2048,)
    rqvae.optimizer.warmup_steps = 5 * NUM_EXAMPLES // rqvae.batch_size

    transformer = config.transformer
    transformer.batch_size = 128
    transformer.steps = 200 * NUM_EXAMPLES // transformer.batch_size
    transformer.model.width = 1024
    transformer.model.body.layers = 24
    transformer.model.body.heads = 16
    transformer.model.head.layers = 4
    transformer.model.head.heads = 16
    transformer.model.dtype = "bfloat16"

    config.codes.batch_size = 256
    config.sampling.top_k = (250,)
    return config
