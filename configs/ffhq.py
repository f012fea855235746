# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""FFHQ 256 x 256, unconditional faces (paper section 4.1).

    rq prepare --config=configs/ffhq.py --config.data.path=DIR
    rq train --config=configs/ffhq.py --config.data.path=DIR --workdir=RUN \\
        --config.rqvae.lpips_weights=lpips.npz

Hardware: written for 8 GPUs or 8 TPU chips; not run yet. Data: a folder with the 70,000
images. 60,000 are for training and 10,000 for validation, chosen at random with a fixed
seed. For another split, list its file names in `train.txt` and `validation.txt` in that
folder. Codes: 8 x 8 x 4 from 2,048.

Stage 1, 100,732,035 parameters with the codebook: batch 128, 150 epochs = 70,312 steps,
5 epochs of warmup.
Stage 2, 355,393,536 parameters: batch 128, 200 epochs = 93,750 steps, cosine decay to 0
without warmup.

Expected on 8 A100 (computed by benchmarks/training_cost.py, not measured): 5 hours for
stage 1 at 25 % of peak bfloat16 FLOPs, 1 hour for stage 2 at 40 %.

FID in the paper: 10.38, with top-k 250 and top-p 1.

Variant `celeba_hq`, not in the paper: the same settings on TFDS `celeb_a_hq/256`, whose
one split has 30,000 images; the last 1,000 are for validation. Some files must be
downloaded by hand; `rq prepare` names them.
"""

from rq.config import choose_variant, default

NUM_EXAMPLES = {"": 60_000, "celeba_hq": 29_000}


def get_config(variant=""):
    """Returns the config of the paper's FFHQ model, or of `celeba_hq`."""
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
