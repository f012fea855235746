# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Conceptual Captions 3M, 256 x 256: images from text (paper section 4.1).

    rq prepare --config=configs/cc3m.py --config.data.path=DIR
    rq train --config=configs/cc3m.py --config.data.path=DIR --workdir=RUN \\
        --config.mesh.fsdp=64 --config.rqvae.lpips_weights=lpips.npz

Hardware: written for 64 or more TPU v5e chips; not run yet. Data: a folder of tar
shards with images and captions, as img2dataset writes them from the published list of
URLs. The numbers of steps assume that 2,950,000 images can still be downloaded.
Codes: 8 x 8 x 4 from 16,384. Captions: 32 BPE tokens from a vocabulary of 16,384. Their
next-token loss has weight 0.1, the loss of the codes 0.9.

Stage 1, 104,402,051 parameters with the codebook: batch 128, 1 epoch = 23,046 steps.
The authors released no settings for it. These are the settings for LSUN, which start
from the weights trained on ImageNet.
Stage 2, 654,061,568 parameters: batch 2,048, 100 epochs = 144,042 steps, cosine decay
to 0 without warmup. Images get DALL-E's small random crops. They are not flipped,
because captions mention left and right.

Expected on 64 v5e chips (computed by benchmarks/training_cost.py, not measured): 20
minutes for stage 1 at 25 % of peak FLOPs, 9 hours for stage 2 at 40 %.

FID in the paper: 12.33, with top-k 16,384 (all) and top-p 0.7.

Variant `coco`, not in the paper: the same stage 1 and a smaller transformer on TFDS
`coco_captions`, with 82,783 training images of five captions each and 5,000 validation
images (`data.eval_split=val`). `rq prepare` downloads 37.6 GiB.
"""

from rq.config import choose_variant, default

NUM_EXAMPLES = 2_950_000
COCO_EXAMPLES = 82_783


def get_config(variant=""):
    """Returns the config of the paper's model, or of `coco`."""
    change = choose_variant(variant, {"": lambda config: None, "coco": _coco})
    config = default()

    data = config.data
    data.name = "tar"
    data.path = "~/data/cc3m"
    data.holdout = 10_000
    data.augment = "dalle"
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
    change(config)
    return config


def _coco(config):
    data = config.data
    data.name = "coco_captions"
    data.path = ""
    data.eval_split = "val"
    rqvae, transformer = config.rqvae, config.transformer
    rqvae.steps = 100 * COCO_EXAMPLES // rqvae.batch_size
    transformer.batch_size = 512
    transformer.steps = 100 * COCO_EXAMPLES // transformer.batch_size
    transformer.model.width = 1024
    transformer.model.body.layers = 24
    transformer.model.body.heads = 16
    transformer.model.head.heads = 16
    transformer.model.remat = "none"
