# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Your own images, at 64, 128 or 256 pixels: a folder, tar shards or a table of files.

    rq prepare --config=folder:64 --config.data.path=DIR
    rq train --config=folder:64 --config.data.path=DIR --workdir=RUN

| variant | pixels | for | parameters of the stages | memory of a step |
|---|---|---|---|---|
| `64` | 64 | two CPU cores, or a laptop's GPU | 2.9 and 3.4 million | 0.2 GiB |
| `128` | 128 | one GPU | 19 and 52 million | 2.9 and 4.6 GiB |
| (none) | 256 | eight accelerators | 100 and 355 million | 19.9 and 7.6 GiB on each |
| `lpips` | 256 | the same, with VGG16 | | |

Memory is that of the train steps as compiled for one A100, or eight (`rq aot
--topology=a100:8`); on a CPU the whole program took 2.1 GB. None of them has been
trained to the end yet: times are FLOPs divided by a speed, and what to expect is what
we expect.

`64`: an hour and a quarter on two cores at the speed of configs/emoji.py (stage 1: 30
images per second, 35 minutes; stage 2: 46, half an hour); captions add ten minutes. A
GPU is limited by the launches of small kernels. The models are those of
configs/emoji.py, without discriminator. It suits 1,000 to 20,000 images that have
something in common; expect colours, outlines and the kind of thing, not faces or texts.

`128`: one night, 8 hours at 15 TFLOP/s (stage 1: 89 GFLOPs for each of 1.9 million
images, 3 hours; stage 2: 37 GFLOPs for each of 6.4 million, 4 hours and a half). It
suits 5,000 to 100,000 images. Expect reconstructions that are soft until the
discriminator starts at step 20,000, and whole objects where the images are alike.

256 pixels: the models of configs/ffhq.py, for 10,000 to 100,000 images. Stage 1 has 1.2
TFLOPs for each of 9 million images, stage 2 0.2 for each of 11.5 million: 7 hours at 40
percent of the peak of eight A100s; plan a day. Expect what the paper shows for FFHQ if
there are as many images, as much alike.

From fewer images stage 2 learns them by heart: see whether `eval/cross_entropy` rises,
and start from a model that was trained on more (`init_from`).

Folders `train` and `validation`, or lists `train.txt` and `validation.txt`, define the
splits. Without them `data.holdout` images (200 at 64 pixels, otherwise 1,000) are set
aside for validation. What preparing finds is used: captions, if at least half of the
images have one, or else the classes, which are the subfolders, if there are two or more
(`transformer.condition='auto'`). A tenth of the conditions is left out in training, for
guidance. For tar shards or a table of files and captions set `--config.data.name=tar`
or `tsv`.

Stage 1 is the paper's, except for its perceptual loss: because there may be no classes,
its features come from a network that predicts by how many quarter turns an image was
rotated. Variant `lpips` uses VGG16 instead (`--config.rqvae.lpips_weights=FILE`).
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
