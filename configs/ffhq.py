# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""FFHQ 256 x 256, faces without condition (paper section 4.1).

    python -m rq.main --mode=prepare --config=configs/ffhq.py --config.data.path=DIR
    python -m rq.main --config=configs/ffhq.py --config.data.path=DIR --workdir=DIR \\
        --config.rqvae.lpips_weights=lpips.npz

Hardware: made for 8 GPUs or 8 TPU chips; not run yet. Data: the folder with the 70,000
images, of which 60,000 to train on and 10,000 to validate with, drawn once for all; to
take another division, put its file names into `train.txt` and `validation.txt` there.
Codes: 8 x 8 x 4 of 2,048.

Stage 1, 100,732,035 parameters with the codebook: batch 128, 150 epochs = 70,312 steps,
warm-up of 5 epochs.
Stage 2, 355,393,536 parameters: batch 128, 200 epochs = 93,750 steps, cosine to 0
without warm-up.

Expected on 8 A100 (counted by benchmarks/training_cost.py, not measured): 5 hours for
stage 1 at 25 % of their bfloat16 peak, 1 hour for stage 2 at 40 %.

FID of the paper: 10.38, with top-k 250 and top-p 1.

Variant `celeba_hq`, not of the paper: the same with TFDS `celeb_a_hq/256`, 30,000
images in one split, of which the last 1,000 are kept to validate with; TFDS says on
`--mode=prepare` which files must be put in place by hand.
"""

from rq.config import choose_variant, default

NUM_EXAMPLES = {"": 60_000, "celeba_hq": 29_000}


def get_config(variant=""):
    """The paper's FFHQ model, or its settings on CelebA-HQ."""
    num_examples = choose_variant(variant, NUM_EXAMPLES)
    config = default()

    data = config.data
    if variant == "celeba_hq":
        data.name = "celeb_a_hq/256"
        data.train_split = f"train[:{num_examples}]"
        data.eval_split = f"train[{num_examples}:]"
    else:
        data.name = "folder"
        data.path = "~/data/ffhq"
        data.holdout = 10_000
    data.augment = "resized_crop_flip"
    data.threads = 16

    rqvae = config.rqvae
    rqvae.batch_size = 128
    rqvae.steps = 150 * num_examples // rqvae.batch_size
    rqvae.model.attn_resolutions = (16,)
    rqvae.model.num_codes = (2048,)
    rqvae.optimizer.warmup_steps = 5 * num_examples // rqvae.batch_size

    transformer = config.transformer
    transformer.batch_size = 128
    transformer.steps = 200 * num_examples // transformer.batch_size
    transformer.model.width = 1024
    transformer.model.body.layers = 24
    transformer.model.body.heads = 16
    transformer.model.head.layers = 4
    transformer.model.head.heads = 16
    transformer.model.dtype = "bfloat16"

    config.codes.batch_size = 256
    config.sampling.top_k = (250,)
    return config
