# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""LSUN 256 x 256, unconditional models of one category each (paper section 4.1).

    rq train --config=configs/lsun.py:church --workdir=RUN \\
        --config.rqvae.lpips_weights=lpips.npz

Hardware: written for 8 GPUs (church) or 64 TPU v5e chips with `--config.mesh.fsdp=64`
(cat, bedroom); not run yet. Data: TFDS `lsun`, whose generator needs tensorflow_io; or
the images that LSUN's own script exports, with `--config.data.name=folder
--config.data.path=DIR --config.data.holdout=300`.
Codes: 8 x 8 x 4 from 16,384.

Stage 1, 104,402,051 parameters with the codebook: batch 128, 1 epoch. The authors start
from the weights trained on ImageNet; from scratch, one epoch of church is far too
short.
Stage 2: cosine decay to 0 without warmup; steps = epochs * images // batch.
Expected (computed by benchmarks/training_cost.py, not measured): church 2.4 hours on 8
A100, cat 4 and bedroom 7.5 hours on 64 v5e chips, at 25 % of peak bfloat16 FLOPs in
stage 1 and 40 % in stage 2.

| variant | images    | width | body | parameters  | batch | epochs | steps   | FID  |
|---------|-----------|-------|------|-------------|-------|--------|---------|------|
| church  | 126,227   | 1024  | 24   | 370,087,936 | 256   | 300    | 147,922 | 7.45 |
| cat     | 1,657,266 | 1280  | 26   | 612,061,184 | 2048  | 100    | 80,921  | 8.64 |
| bedroom | 3,033,042 | 1280  | 26   | 612,061,184 | 2048  | 100    | 148,097 | 3.04 |

FID in the paper, with top-k 250 and top-p 1. There is no default variant.
"""

from rq.config import choose_variant, default

VARIANTS = {  # TFDS config, images, width, heads, layers of the body, batch, epochs
    "church": ("church_outdoor", 126_227, 1024, 16, 24, 256, 300),
    "cat": ("cat", 1_657_266, 1280, 20, 26, 2048, 100),
    "bedroom": ("bedroom", 3_033_042, 1280, 20, 26, 2048, 100),
}


def get_config(variant=""):
    """Returns the config of one of `VARIANTS`."""
    name, num_examples, width, heads, body, batch_size, epochs = choose_variant(
        variant, VARIANTS
    )
    config = default()

    data = config.data
    data.name = f"lsun/{name}"
    data.augment = "center"
    data.threads = 16

    rqvae = config.rqvae
    rqvae.batch_size = 128
    rqvae.steps = num_examples // rqvae.batch_size

    transformer = config.transformer
    transformer.batch_size = batch_size
    transformer.steps = epochs * num_examples // batch_size
    transformer.model.width = width
    transformer.model.body.layers = body
    transformer.model.body.heads = heads
    transformer.model.head.layers = 4
    transformer.model.head.heads = heads
    transformer.model.remat = "none" if variant == "church" else "full"
    transformer.model.dtype = "bfloat16"

    config.codes.batch_size = 512
    config.sampling.top_k = (250,)
    config.log.eval_every = 5000
    return config
