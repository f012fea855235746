# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Emoji, 64 x 64 in colour, rendered from an installed font: trains well on two cores.

    rq train --config=configs/emoji.py --workdir=runs/emoji
    rq train --config=configs/emoji.py:class --workdir=runs/emoji_class
    rq train --config=configs/emoji.py:text --workdir=runs/emoji_text
    rq train --config=configs/emoji.py:class_text --workdir=runs/emoji_class_text
    rq train --config=configs/emoji.py:anyorder --workdir=runs/emoji_anyorder
    rq train --config=configs/emoji.py:superres --workdir=runs/emoji_superres
    rq train --config=configs/emoji.py:colour --workdir=runs/emoji_colour

Needs the Debian packages fonts-noto-color-emoji and unicode-data. First a small network
learns to classify the nine groups of emoji. Then stage 1 trains with the paper's
losses: reconstruction, commitment, perceptual (on the features of that network) and
adversarial. Variant `nogan` has no discriminator. Codes: 8 x 8 x 4 from 1,024.

Variant `lpips` has the paper's own perceptual loss, on VGG16, instead of that network
(`--config.rqvae.lpips_weights=FILE` of `rq convert lpips`). It has been trained for 600
steps from the model that comes with rq (docs/results.md), not from nothing.

Variants `class`, `text` and `class_text` are `nogan` followed by stage 2: 3,300 images
in batches of 8, for 12 to 20 epochs. So that it trains in an hour on two cores, its
models are small (width 192, 6 body layers, 1 head layer) and have no dropout. At
temperature 0.02 the nearest code has 0.97 of the probability at depth 1 and a tenth at
depth 4. Most captions occur once and contain words that no other caption has, so those
with text use Muon and whole words as tokens. `anyorder` is `class_text` with the
positions of each image in a random order.

Variants `superres` and `colour` generate emoji from 16 x 16 pixels and from their grey
pictures. They train stage 2 alone; both stages start from the model that comes with the
package (`emoji`).

Label maps and emoji over textures (data set emoji_segments) need RQ-VAEs of their own,
which start from that one. `textured` trains that of the pictures, `segment` that of the
maps and then stage 2 from picture to map; `paint`, on the RQ-VAEs of both, goes back:

    rq train --config=configs/emoji.py:textured --workdir=runs/emoji_textured
    rq train --config=configs/emoji.py:segment --workdir=runs/emoji_segment \\
        --config.transformer.source_rqvae=runs/emoji_textured
    rq train --config=configs/emoji.py:paint --workdir=runs/emoji_paint \\
        --config.init_from=runs/emoji_textured \\
        --config.transformer.source_rqvae=runs/emoji_segment
"""

from rq.config import choose_variant, default

NUM_EXAMPLES = 3_300
VARIANTS = {  # weight of the adversarial loss, condition and epochs of stage 2
    "": (0.75, "none", 0),
    "nogan": (0.0, "none", 0),
    "lpips": (0.75, "none", 0),
    "class": (0.0, "class", 15),
    "text": (0.0, "text", 20),
    "class_text": (0.0, "class_text", 12),
    "anyorder": (0.0, "class_text", 12),
    "superres": (0.0, "none", 4),
    "colour": (0.0, "none", 4),
    "textured": (0.0, "none", 0),
    "segment": (0.0, "none", 4),
    "paint": (0.0, "none", 4),
}
SOURCES = {  # data set, source image, whether both change places, and stages
    "superres": ("emoji", "lowres:4", False, ("codes", "transformer")),
    "colour": ("emoji", "grey", False, ("codes", "transformer")),
    "textured": ("emoji_segments", "none", False, ("rqvae",)),
    "segment": ("emoji_segments", "pairs", True, ("rqvae", "codes", "transformer")),
    "paint": ("emoji_segments", "pairs", False, ("codes", "transformer")),
}


def get_config(variant=""):
    """Returns the config of one of `VARIANTS`."""
    weight, condition, epochs = choose_variant(variant, VARIANTS)

    config = default()
    is_lpips = variant == "lpips"
    config.stages = ("rqvae",) if is_lpips else ("features", "rqvae")
    if epochs:
        config.stages += ("codes", "transformer")

    data = config.data
    data.name = "emoji"
    data.resolution = 64
    data.num_classes = 9

    if variant in SOURCES:
        data.name, data.source, data.swap_pairs, config.stages = SOURCES[variant]
        config.init_from, config.init_stages = "emoji", ("rqvae",)
        if data.name == "emoji":
            config.init_stages += ("transformer",)
    if variant == "segment":
        from rq.data.emoji_segments import PALETTE  # imports TFDS

        data.palette = PALETTE

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
    rqvae.loss.perceptual = "lpips" if is_lpips else "features"
    rqvae.loss.perceptual_weight = 1.0 if is_lpips else 0.1
    if data.name == "emoji_segments":  # fine-tuned, by pixels alone
        rqvae.steps = 800
        rqvae.loss.perceptual = "none"
    adversarial = rqvae.adversarial
    adversarial.weight = weight
    adversarial.ndf = 32
    adversarial.start = 2000
    for optimizer in (rqvae.optimizer, adversarial.optimizer):
        optimizer.learning_rate = 1e-3
        optimizer.warmup_steps = 100
        optimizer.min_learning_rate = 0.0

    transformer = config.transformer
    transformer.batch_size = 8
    transformer.steps = max(epochs, 1) * NUM_EXAMPLES // transformer.batch_size
    transformer.condition = condition
    transformer.order = "random" if variant == "anyorder" else "raster"
    transformer.model.width = 192
    for stack, layers in ((transformer.model.body, 6), (transformer.model.head, 1)):
        stack.layers = layers
        stack.heads = 6
        stack.residual_dropout = 0.0
    transformer.loss.temperature = 0.02
    transformer.optimizer.learning_rate = 1e-3
    transformer.optimizer.warmup_steps = 100
    if condition.startswith("class"):
        transformer.condition_dropout = 0.1
    if condition.endswith("text"):
        transformer.text.vocab_size = 4096
        transformer.text.dropout = 0.0
        transformer.text.length = 14
        transformer.optimizer.name = "muon"
        config.sampling.temperature = (0.5,)
    if data.source != "none":
        transformer.condition_dropout = 0.1
    config.sampling.top_p = (0.9,)

    config.checkpoint.every = 500
    config.log.every = 50
    config.log.eval_every = 2000 if epochs else 1000
    return config
