# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""ImageNet 256 x 256, class-conditional: the paper's four models (section 4.1).

    rq train --config=configs/imagenet.py:1.4B --workdir=RUN \\
        --config.rqvae.lpips_weights=lpips.npz

Hardware: written for 64 or more TPU v5e chips, with the train states of 1.4B and 3.8B
sharded over all of them; not run yet. Data: TFDS `imagenet2012`, 1,281,167 images.
Codes: 8 x 8 x 4 from 16,384.

Stage 1, 104,402,051 parameters with the codebook: batch 128, 50 epochs = 500,455 steps,
half an epoch of warmup. The paper's first one had 10 epochs:
`--config.rqvae.steps=100091`. The perceptual loss is LPIPS on VGG16; its file is made
by `rq convert lpips --vgg=vgg16-397923af.pth --out=lpips.npz`.
Stage 2: batch 2,048, 100 epochs = 62,556 steps, cosine decay to 0 without warmup.
Expected on 64 v5e chips (computed by benchmarks/training_cost.py, not measured): 7
hours for stage 1 at 25 % of peak FLOPs, and 3, 4, 7 and 18 hours for stage 2 at 40 %.

| variant | width | heads | body | head | parameters    | FID in the paper     |
|---------|-------|-------|------|------|---------------|----------------------|
| 480M    | 1536  | 24    | 12   | 4    | 480,921,088   | 15.72                |
| 821M    | 1536  | 24    | 24   | 4    | 820,899,328   | 13.11                |
| 1.4B    | 1536  | 24    | 42   | 6    | 1,387,529,728 | 11.56; 50 epochs 8.71 |
| 3.8B    | 2560  | 40    | 42   | 6    | 3,822,488,064 | 7.55                 |

FID with the authors' sampling settings: top-k 16,384 (all), top-p 0.92, 50,000 images.
The default variant is 1.4B.
"""

from rq.config import choose_variant, default

NUM_EXAMPLES = 1_281_167
VARIANTS = {  # width, heads, layers of the body, layers of the head
    "480M": (1536, 24, 12, 4),
    "821M": (1536, 24, 24, 4),
    "1.4B": (1536, 24, 42, 6),
    "3.8B": (2560, 40, 42, 6),
}
SHARDED = ("1.4B", "3.8B")  # their train states exceed the memory of one chip


def get_config(variant="1.4B"):
    """Returns the config of one of `VARIANTS`."""
    variant = variant or "1.4B"
    width, heads, body, head = choose_variant(variant, VARIANTS)
    config = default()

    data = config.data
    data.name = "imagenet2012"
    data.num_classes = 1000
    data.augment = "crop_flip"
    data.threads = 16

    rqvae = config.rqvae
    rqvae.batch_size = 128
    rqvae.steps = 50 * NUM_EXAMPLES // rqvae.batch_size
    rqvae.optimizer.warmup_steps = NUM_EXAMPLES // 2 // rqvae.batch_size

    transformer = config.transformer
    transformer.batch_size = 2048
    transformer.steps = 100 * NUM_EXAMPLES // transformer.batch_size
    transformer.condition = "class"
    transformer.model.width = width
    transformer.model.body.layers = body
    transformer.model.body.heads = heads
    transformer.model.head.layers = head
    transformer.model.head.heads = heads
    transformer.model.remat = "full"
    transformer.model.dtype = "bfloat16"

    if variant in SHARDED:
        config.mesh.data, config.mesh.fsdp = 1, -1
    config.codes.batch_size = 512
    config.sampling.top_k = (16384,)
    config.sampling.top_p = (0.92,)
    config.log.eval_every = 5000
    return config
