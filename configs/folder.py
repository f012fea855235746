# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Your own images, 256 x 256: a folder, tar shards or a table of files.

    rq prepare --config=configs/folder.py --config.data.path=DIR
    rq train --config=configs/folder.py --config.data.path=DIR --workdir=RUN

Folders `train` and `validation`, or lists `train.txt` and `validation.txt`, define the
splits. Without them `data.holdout` images are set aside for validation. Subfolders are
classes: `--config.data.num_classes=N` checks their number, and
`--config.transformer.condition=class` uses them. For tar shards or a table of files and
captions set `--config.data.name=tar` or `tsv`.

Stage 1 is the paper's, except for its perceptual loss: because there may be no classes,
its features come from a network that predicts by how many quarter turns an image was
rotated. Variant `lpips` uses VGG16 instead (`--config.rqvae.lpips_weights=FILE`). Steps
and model sizes suit 10,000 to 100,000 images and 8 accelerators.
"""

from rq.config import choose_variant, default


def get_config(variant=""):
    """Returns the config of variant '' (features of its own network) or 'lpips'."""
    perceptual = choose_variant(variant, {"": "features", "lpips": "lpips"})
    config = default()

    data = config.data
    data.name = "folder"
    data.augment = "resized_crop_flip"
    data.threads = 16

    rqvae = config.rqvae
    rqvae.loss.perceptual = perceptual
    if perceptual == "features":
        config.stages = ("features", *config.stages)
        config.features.objective = "rotation"
    rqvae.model.num_codes = (2048,)
    rqvae.model.attn_resolutions = (16,)
    rqvae.steps = 70_000
    rqvae.optimizer.warmup_steps = 1000

    transformer = config.transformer
    transformer.batch_size = 128
    transformer.steps = 90_000
    transformer.model.width = 1024
    transformer.model.body.layers = 24
    transformer.model.body.heads = 16
    transformer.model.head.layers = 4
    transformer.model.head.heads = 16
    transformer.model.dtype = "bfloat16"

    config.sampling.top_k = (250,)
    return config
