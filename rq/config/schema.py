# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every field of the config, declared once; docs/config.md is made from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from rq.config import repeated, sampling
from rq.config.declaration import (
    BELOW_ONE,
    FRACTION,
    NOT_EMPTY,
    NOT_NEGATIVE,
    POSITIVE,
    RUN_COMMANDS,
    SEED,
    Field,
    Range,
    one_of,
)
from rq.config.errors import ConfigError

STAGES = ("features", "rqvae", "codes", "transformer")
FROM_PATH = ("folder", "tar", "tsv")  # data.name of images that data.path names

_TRAIN = ("train",)
_ANYWHERE = (*_TRAIN, *RUN_COMMANDS)  # where the data and the devices are
_MESH = Range(lambda x: x > 0 or x == -1, "positive, or -1: what is left")
_STAGES = Range(
    lambda x: x in STAGES,
    f"some of {', '.join(STAGES)}",
    f"unknown stage; known: {', '.join(STAGES)} (for several, repeat the flag)",
)


SCHEMA: dict[str, Any] = dict(
    seed=Field(
        0, "of parameters, dropout, stochastic codes and the order of data", SEED
    ),
    stages=Field(
        STAGES[1:],
        "stages to run, in this order; 'features' where it is used",
        _STAGES,
        changed_by=_TRAIN,
    ),
    mesh=dict(
        data=Field(
            -1,
            "copies of the model; commands other than train begin with (-1, 1, 1)",
            _MESH,
            changed_by=_ANYWHERE,
        ),
        fsdp=Field(
            1,
            "shards of parameters and optimizer state",
            _MESH,
            changed_by=_ANYWHERE,
        ),
        tensor=Field(
            1, "shards of heads, MLP and vocabulary", _MESH, changed_by=_ANYWHERE
        ),
    ),
    data=dict(
        name=Field(
            "imagenet2012",
            "TFDS name, with its config after a slash; or 'folder' (of images), 'tar' "
            "(WebDataset shards), 'tsv' (file and caption in each line)",
            NOT_EMPTY,
        ),
        path=Field("", "of 'folder', 'tar' or 'tsv'", changed_by=_ANYWHERE),
        dir=Field(
            "",
            "where TFDS keeps data sets; '': ~/tensorflow_datasets",
            changed_by=_ANYWHERE,
        ),
        train_split=Field("train", "name of the training split", NOT_EMPTY),
        eval_split=Field("validation", "name of the evaluation split", NOT_EMPTY),
        holdout=Field(
            1000, "images to validate with, where `path` has no such split", POSITIVE
        ),
        resolution=Field(256, "side of the square images, in pixels", POSITIVE),
        channels=Field(3, "3: colour, 1: grey", one_of(1, 3)),
        num_classes=Field(
            0, "labels are 0 .. num_classes - 1; 0: no labels", NOT_NEGATIVE
        ),
        augment=Field(
            "none",
            "'none': images have this resolution; 'flip': flipped half of the time; "
            "'crop_flip': short side resized, random crop, flip; 'resized_crop_flip': "
            "random crop of scale 0.75 to 1 and ratio 1, flip; 'center': short side "
            "resized, centre crop; 'dalle': square crop about the centre, resized to 1 "
            "to 9/8, random crop",
            one_of("none", "flip", "crop_flip", "resized_crop_flip", "center", "dalle"),
        ),
        threads=Field(
            2,
            "that read and decode, in each process",
            NOT_NEGATIVE,
            changed_by=_ANYWHERE,
        ),
        prefetch=Field(8, "batches read ahead", POSITIVE, changed_by=_ANYWHERE),
    ),
    features=dict(
        repeated.steps(64, 2000),
        objective=Field(
            "class",
            "what the network predicts: the class, or a rotation by 90 degrees",
            one_of("class", "rotation"),
        ),
        model=dict(
            widths=Field(
                (32, 64, 128), "channels of each block, half the size each", POSITIVE
            ),
            convs=Field((2, 2, 2), "convolutions of each block", POSITIVE),
        ),
        optimizer=repeated.optimizer(
            name="adamw",
            learning_rate=1e-3,
            b1=0.9,
            b2=0.999,
            weight_decay=1e-2,
            decay_matrices_only=True,
            warmup_steps=100,
            min_learning_rate=0.0,
        ),
    ),
    rqvae=dict(
        repeated.steps(128, 100_000, ("sample", "reconstruct", "evaluate", "rank")),
        lpips_weights=Field(
            "", "file written by `rq convert lpips`", changed_by=_TRAIN
        ),
        model=dict(
            ch=Field(128, "channels of the first level", POSITIVE),
            ch_mult=Field(
                (1, 1, 2, 2, 4, 4), "of each level, half the size each", POSITIVE
            ),
            num_res_blocks=Field(2, "of a level; the decoder has one more", POSITIVE),
            attn_resolutions=Field(
                (8,), "sides, in pixels, of levels with attention", POSITIVE
            ),
            z_channels=Field(256, "of the encoder's output", POSITIVE),
            embed_dim=Field(256, "of the feature map that is quantized", POSITIVE),
            code_shape=Field((8, 8, 4), "rows, columns, depth D", POSITIVE),
            num_codes=Field((16384,), "K, one or one for each depth", POSITIVE),
            shared_codebook=Field(True, "one codebook for all depths"),
            decay=Field(
                (0.99,), "of codebook averages, one or one for each depth", BELOW_ONE
            ),
            restart_codes=Field(True, "unused codes restart from vectors of the batch"),
            cosine=Field(False, "codes of one length at each depth, compared by angle"),
            fsq_levels=Field(
                (0,),
                "a fixed grid with so many levels in each channel; 0: off",
                Range(lambda x: x == 0 or x > 1, "2 or more, or 0: off"),
            ),
            gradient=Field(
                "straight_through",
                "estimator of gradients through the quantizer",
                one_of("straight_through", "rotation"),
            ),
            depth_dropout=Field(
                0.0, "fraction of training images cut to a random depth", FRACTION
            ),
            dtype=Field("float32", "of convolutions", repeated.DTYPE),
        ),
        loss=dict(
            reconstruction=Field(
                "mse", "squared or absolute error", one_of("mse", "l1")
            ),
            commitment_weight=Field(0.25, "of the commitment loss", NOT_NEGATIVE),
            perceptual=Field(
                "lpips",
                "'lpips' (VGG16 of `lpips_weights`) or 'features' (the same formula on "
                "the network of stage `features`)",
                one_of("none", "lpips", "features"),
            ),
            perceptual_weight=Field(1.0, "of the perceptual loss", NOT_NEGATIVE),
            entropy_weight=Field(
                0.0, "sharp assignments and even use of codes; 0: off", NOT_NEGATIVE
            ),
            entropy_temperature=Field(1.0, "of these soft assignments", POSITIVE),
        ),
        adversarial=dict(
            weight=Field(
                0.75, "of the losses of both sides; 0: no discriminator", NOT_NEGATIVE
            ),
            loss=Field("hinge", "of the discriminator", one_of("hinge", "vanilla")),
            start=Field(0, "step at which both sides begin", NOT_NEGATIVE),
            max_weight=Field(1e4, "bound of the adaptive weight", POSITIVE),
            ndf=Field(64, "channels of the discriminator's first layer", POSITIVE),
            layers=Field(2, "of it that halve the resolution", POSITIVE),
            r1_weight=Field(
                0.0, "of the gradient penalty at real images; 0: off", NOT_NEGATIVE
            ),
            lecam_weight=Field(
                0.0, "pull towards moving means of logits; 0: off", NOT_NEGATIVE
            ),
            optimizer=repeated.optimizer(),
        ),
        optimizer=repeated.optimizer(),
    ),
    codes=dict(
        batch_size=Field(
            64,
            "images that a process encodes at once",
            POSITIVE,
            changed_by=("train", "encode"),
        ),
        variants=Field(
            1, "of each training image: its centre, then augmented ones", POSITIVE
        ),
        shard_size=Field(8192, "images in a file", POSITIVE),
    ),
    transformer=dict(
        repeated.steps(2048, 62_500, ("evaluate",)),
        condition=Field(
            "none",
            "what generation is conditioned on; 'none': a start token",
            one_of("none", "class", "text", "class_text"),
        ),
        condition_dropout=Field(
            0.0,
            "fraction of images trained without condition, for guidance",
            BELOW_ONE,
        ),
        online=Field(False, "encodes images in each step, without stored codes"),
        text=dict(
            tokenizer=Field(
                "",
                "of the library `tokenizers`: its .json, or a folder with vocabulary "
                "and merges; '': trained on the captions of the training split",
            ),
            vocab_size=Field(16384, "tokens that the model knows", POSITIVE),
            dropout=Field(0.1, "of merges, in training", BELOW_ONE),
            length=Field(
                32,
                "tokens in front of the codes",
                Range(lambda x: x > 1, "2 tokens or more"),
            ),
            weight=Field(0.1, "of the text's loss; the codes' has the rest", FRACTION),
        ),
        model=dict(
            width=Field(1536, "channels M of both stacks", POSITIVE),
            body=repeated.stack(layers=42),
            head=repeated.stack(layers=6),
            shared_token_embedding=Field(
                True, "learned embeddings, if any, are shared by all depths"
            ),
            shared_classifier=Field(True, "one classifier for all depths"),
            body_from_codebook=Field(
                True, "the body reads code vectors; otherwise learned embeddings"
            ),
            head_from_codebook=Field(
                True, "the head reads code vectors; otherwise learned embeddings"
            ),
            cumulative_head=Field(
                True, "the head reads the sum of the code vectors so far"
            ),
            embedding_dropout=Field(0.0, "of the inputs of both stacks", BELOW_ONE),
            remat=Field(
                "none",
                "recomputed in the backward pass: nothing, 'full' blocks, or all but "
                "'dots' (matrix products)",
                one_of("none", "full", "dots"),
                changed_by=_TRAIN,
            ),
            dtype=Field("float32", "of matrix products", repeated.DTYPE),
        ),
        loss=dict(
            soft_targets=Field(True, "soft targets; otherwise the nearest codes"),
            stochastic_codes=Field(
                True, "inputs are drawn; otherwise the nearest codes"
            ),
            temperature=Field(0.5, "tau of soft targets and drawn inputs", POSITIVE),
            z_weight=Field(
                0.0,
                "keeps the logits' normalizer near 1; 1e-4 where used",
                NOT_NEGATIVE,
            ),
            microbatches=Field(
                1,
                "groups of positions, not of images, whose logits exist one group at "
                "a time",
                POSITIVE,
                changed_by=("train", "evaluate"),
                was="pieces",
            ),
        ),
        optimizer=repeated.optimizer(
            name="adamw",
            learning_rate=5e-4,
            b1=0.9,
            b2=0.95,
            weight_decay=1e-4,
            decay_matrices_only=True,
            clip_norm=1.0,
            min_learning_rate=0.0,
        ),
    ),
    sampling=sampling.OPTIONS,
    checkpoint=dict(
        every=Field(1000, "steps", POSITIVE, changed_by=_TRAIN),
        keep=Field(2, "latest checkpoints that stay", POSITIVE, changed_by=_TRAIN),
        keep_every=Field(
            0,
            "those of multiples of so many steps stay, too; 0: none",
            NOT_NEGATIVE,
            changed_by=_TRAIN,
        ),
        best=Field(
            False, "that of the best evaluation stays: `--step=best`", changed_by=_TRAIN
        ),
        fallback=Field(
            False,
            "goes back past a checkpoint whose files are missing or damaged",
            changed_by=_TRAIN,
        ),
    ),
    log=dict(
        every=Field(50, "steps between scalars", POSITIVE, changed_by=_TRAIN),
        eval_every=Field(
            1000, "steps between evaluations and pictures", POSITIVE, changed_by=_TRAIN
        ),
        eval_batches=Field(
            0,
            "of an evaluation in training; 0: the whole split",
            NOT_NEGATIVE,
            changed_by=_TRAIN,
        ),
    ),
    profile=dict(
        start=Field(0, "first step of the trace", NOT_NEGATIVE, changed_by=_TRAIN),
        steps=Field(0, "its length; 0: off", NOT_NEGATIVE, changed_by=_TRAIN),
    ),
)


def fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns every field by its dotted name, sections opened up."""
    found = {}
    for key, value in config.items():
        if isinstance(value, (ConfigDict, dict)):
            found |= {f"{key}.{name}": v for name, v in fields(value).items()}
        else:
            found[key] = value
    return found


def sections(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the names in each section by its dotted name, '' being the config."""
    found = {"": list(config)}
    for key, value in config.items():
        if isinstance(value, (ConfigDict, dict)):
            for name, children in sections(value).items():
                found[f"{key}.{name}".rstrip(".")] = children
    return found


FIELDS: dict[str, Field] = fields(SCHEMA)
SECTIONS = sections(SCHEMA)
# Old dotted names of fields, and the names that they have now.
RENAMED = {
    f"{name.rpartition('.')[0]}.{field.was}": name
    for name, field in FIELDS.items()
    if field.was
}
# Fields that training may go on with other values of.
PRACTICAL = tuple(name for name, field in FIELDS.items() if field.changeable)


def default() -> ConfigDict:
    """Returns a config of every field's default (paper section 4, released configs)."""

    def values(section):
        return {
            name: part.default if isinstance(part, Field) else values(part)
            for name, part in section.items()
        }

    return ConfigDict(values(SCHEMA)).lock()


def choose_variant(variant: str, known: Mapping[str, Any]) -> Any:
    """Returns the entry of a config file's variant.

    Raises:
      ConfigError: naming the known ones.
    """
    if variant not in known:
        raise ConfigError(
            f"unknown config variant {variant!r}; "
            f"known: {', '.join(repr(name) for name in known)}"
        )
    return known[variant]
