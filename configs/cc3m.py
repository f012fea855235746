# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Conceptual Captions 3M, 256 x 256, images from text (paper section 4.1).

    python -m rq.main --config=configs/cc3m.py --workdir=DIR --config.mesh.fsdp=64

Hardware: made for 64 TPU v5e chips or more; not run yet. Data: image and caption pairs,
as many as can still be downloaded; 2,950,000 are assumed. Codes: 8 x 8 x 4 of 16,384.
Captions: 32 BPE tokens of a vocabulary of 16,384; their next-token loss has weight 0.1,
that of the codes 0.9.

Stage 1, 104,402,051 parameters with the codebook: batch 128, 1 epoch = 23,046 steps. No
settings of the authors' are released for it; these are LSUN's, which start from the
weights of ImageNet.
Stage 2, 654,061,568 parameters: batch 2,048, 100 epochs = 144,042 steps, cosine to 0
without warm-up. Images are cropped at the centre, the authors' a little at random;
neither is flipped, since captions say left and right.

FID of the paper: 12.33, with top-k 16,384 (all) and top-p 0.7.
"""

from rq.config import choose_variant, default

NUM_EXAMPLES = 2_950_000


def get_config(variant=""):
    """The paper's CC-3M model; no variants."""
    choose_variant(variant, {"": None})
    config = default()

    data = config.data
    data.name = "cc3m"
    data.augment = "center"
    data.threads = 16

    rqvae = config.rqvae
    rqvae.batch_size = 128
    rqvae.steps = NUM_EXAMPLES // rqvae.batch_size

    transformer = config.transformer
    transformer.batch_size = 2048
    transformer.steps = 100 * NUM_EXAMPLES // transformer.batch_size
    transformer.condition = "text"
    transformer.model.width = 1280
    transformer.model.body.layers = 26
    transformer.model.body.heads = 20
    transformer.model.head.layers = 4
    transformer.model.head.heads = 20
    transformer.model.remat = "full"
    transformer.model.dtype = "bfloat16"

    config.codes.batch_size = 512
    config.sampling.top_k = (16384,)
    config.sampling.top_p = (0.7,)
    config.log.eval_every = 5000
    return config
