# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Declares every field of the config; docs/config.md is generated from it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference

from rq.config import sampling
from rq.config.declaration import (
    BELOW_ONE,
    DTYPE,
    FRACTION,
    NOT_EMPTY,
    NOT_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    RUN_COMMANDS,
    SEED,
    SEVERAL,
    Field,
    Range,
    changed_by,
    one_of,
)
from rq.config.errors import ConfigError

STAGES = ("features", "rqvae", "codes", "transformer")
STARTED = ("rqvae", "transformer")  # that `init_from` may give weights
FROM_PATH = ("folder", "tar", "tsv")  # values of data.name that need data.path

_TRAIN = ("train",)
_ALL = (*_TRAIN, *RUN_COMMANDS)
_AXIS = Range(lambda x: x > 0 or x == -1, "positive, or -1: all remaining devices")
_STAGES = Range(one_of(*STAGES).contains, f"{one_of(*STAGES).text}; repeat the flag")

_MESH = changed_by(
    _ALL,
    data=Field(-1, "replicas of the model; -1 for commands other than train", _AXIS),
    fsdp=Field(1, "shards of parameters and optimizer state", _AXIS),
    tensor=Field(1, "shards of attention heads, MLP and vocabulary", _AXIS),
)

_AUGMENT = """\
'none': images have this resolution; 'flip': flipped half of the time; 'crop_flip': \
short side resized, random crop, flip; 'resized_crop_flip': random crop of scale 0.75 \
to 1 and the resolution's ratio, flip; 'center': short side resized, centre crop; \
'dalle': crop about the centre, resized to 1 to 9/8, random crop"""
_SOURCE = """\
source image of each image, which stage 2 is then conditioned on; 'pairs': one's own, \
see `source_path`; or made of the image: 'grey'; 'lowres:N': of 1/N of the resolution, \
enlarged; 'edges'; 'mask': a random rectangle is missing"""
_SOURCES = Range(
    lambda x: bool(
        re.fullmatch(r"none|pairs|grey|edges|mask|lowres:([2-9]|[1-9]\d+)", x)
    ),
    "'none', 'pairs', 'grey', 'lowres:N', 'edges' or 'mask'",
)
_COLOURS = Range(
    lambda x: bool(re.fullmatch("(#[0-9a-f]{6})?", x)), "colours, such as '#ff8800'"
)
_DATA = dict(
    name=Field(
        "imagenet2012",
        "TFDS data set, with its config after a slash; or images of your own: "
        "'folder', 'tar' (WebDataset shards), 'tsv' (file and caption in each line)",
        NOT_EMPTY,
    ),
    **changed_by(
        _ALL,
        path=Field("", "where the images of 'folder', 'tar' or 'tsv' are"),
        dir=Field("", "where TFDS keeps data sets; '': ~/tensorflow_datasets"),
    ),
    train_split=Field("train", "name of the training split", NOT_EMPTY),
    eval_split=Field("validation", "name of the evaluation split", NOT_EMPTY),
    holdout=Field(1000, "validation images, if `path` has no such split", POSITIVE),
    resolution=Field(
        256,
        "side of square images, or their height and width (64,96), in pixels",
        POSITIVE,
        or_tuple=True,
    ),
    channels=Field(3, "3: colour, 1: grey", one_of(1, 3)),
    num_classes=Field(0, "labels are 0 .. num_classes - 1; 0: none", NOT_NEGATIVE),
    source=Field("none", _SOURCE, _SOURCES, since="0.2", before="none"),
    source_path=Field(
        "",
        "for 'pairs' of 'folder': the folder of source images, with the names of the "
        "images; a table has a column `source`",
        since="0.2",
        changed_by=_ALL,
    ),
    swap_pairs=Field(
        False, "images and sources of 'pairs' change places", since="0.2", before=False
    ),
    palette=Field(
        ("",),
        "of images that are label maps: the colour of each class, to measure with; "
        "'': they are none",
        _COLOURS,
        since="0.2",
        changed_by=_ALL,
    ),
    augment=Field(
        "none",
        _AUGMENT,
        one_of("none", "flip", "crop_flip", "resized_crop_flip", "center", "dalle"),
    ),
    **changed_by(
        _ALL,
        threads=Field(2, "decoding threads per process", NOT_NEGATIVE),
        prefetch=Field(8, "batches read ahead", POSITIVE),
    ),
)


def _steps(batch_size: int, steps: int, commands=()) -> dict[str, Field]:
    """Returns a stage's batch size and steps; `commands` may change the batch size."""
    microbatches = "microbatches per step; their gradients are averaged"
    images = "images per step over all devices"
    return dict(
        batch_size=Field(batch_size, images, POSITIVE, changed_by=commands),
        steps=Field(steps, "training steps", POSITIVE),
        grad_accum_steps=Field(1, microbatches, POSITIVE, was="accumulate"),
    )


def _optimizer(**defaults) -> dict[str, Field]:
    """Returns a section `optimizer`, with other defaults where given."""
    section = dict(
        name=Field(
            "adam",
            "'adam' adds weight decay to gradients, the others to updates; 'adafactor' "
            "needs little memory; 'muon' is for the matrices of stage 2, with Adam for "
            "all other parameters; 'sgd' uses momentum b1",
            one_of("adam", "adamw", "lion", "adafactor", "muon", "sgd"),
        ),
        learning_rate=Field(4e-5, "learning rate after the warm-up", POSITIVE),
        b1=Field(0.5, "decay of the moving average of gradients", BELOW_ONE),
        b2=Field(0.9, "decay of the moving average of squared gradients", BELOW_ONE),
        eps=Field(1e-8, "added to the denominator of updates", POSITIVE),
        mu_dtype=Field(
            "float32", "dtype of b1's moving average", DTYPE, before="float32"
        ),
        weight_decay=Field(0.0, "weight decay; 0: off", NOT_NEGATIVE),
        decay_matrices_only=Field(False, "no decay of biases, norms and embeddings"),
        clip_norm=Field(0.0, "maximum global norm of gradients; 0: off", NOT_NEGATIVE),
        warmup_steps=Field(0, "steps of linear warm-up from 0", NOT_NEGATIVE),
        min_learning_rate=Field(
            4e-5, "end of the cosine decay of the rate", NOT_NEGATIVE
        ),
        ema=Field(0.0, "decay of the moving average of parameters; 0: off", BELOW_ONE),
    )
    return {
        name: dataclasses.replace(field, default=defaults.get(name, field.default))
        for name, field in section.items()
    }


_FEATURES = dict(
    _steps(64, 2000),
    objective=Field(
        "class",
        "what the network predicts: the class, or a rotation by 90 degrees",
        one_of("class", "rotation"),
    ),
    model=dict(
        widths=Field((32, 64, 128), "channels of blocks, each half the size", POSITIVE),
        convs=Field((2, 2, 2), "convolutions of each block", POSITIVE),
    ),
    optimizer=_optimizer(
        name="adamw",
        learning_rate=1e-3,
        b1=0.9,
        b2=0.999,
        weight_decay=1e-2,
        decay_matrices_only=True,
        warmup_steps=100,
        min_learning_rate=0.0,
    ),
)

_RQVAE_MODEL = dict(
    ch=Field(128, "channels of the first level", POSITIVE),
    ch_mult=Field((1, 1, 2, 2, 4, 4), "multiples of ch, level by level", POSITIVE),
    num_res_blocks=Field(2, "residual blocks of a level; decoder: + 1", POSITIVE),
    attn_resolutions=Field((8,), "heights of the levels with attention", POSITIVE),
    z_channels=Field(256, "channels of the encoder's output", POSITIVE),
    embed_dim=Field(256, "channels of the quantized feature map", POSITIVE),
    code_shape=Field((8, 8, 4), "rows, columns, depth D of the codes", POSITIVE),
    num_codes=Field((16384,), "codebook size K; one, or one per depth", SEVERAL),
    shared_codebook=Field(True, "one codebook for all depths"),
    decay=Field(
        (0.99,), "decay of codebook averages; one, or one per depth", BELOW_ONE
    ),
    restart_codes=Field(True, "replace unused codes by latents of the batch"),
    codebook_sums=Field(
        "scatter",
        "how codebook averages sum over a batch; 'one_hot': in a fixed order, so that "
        "GPU runs repeat bit for bit",
        one_of("scatter", "one_hot"),
        since="0.2",
        changed_by=_TRAIN,
    ),
    cosine=Field(False, "codes of equal norm at each depth, compared by angle"),
    fsq_levels=Field(
        (0,),
        "levels per channel of a fixed grid in place of codebooks; 0: off",
        Range(lambda x: x == 0 or x > 1, "2 or more, or 0: off"),
    ),
    gradient=Field(
        "straight_through",
        "estimator of gradients through the quantizer",
        one_of("straight_through", "rotation"),
    ),
    depth_dropout=Field(0.0, "fraction of images cut to a random depth", FRACTION),
    dtype=Field("float32", "dtype of convolutions", DTYPE),
)

_RQVAE_LOSS = dict(
    reconstruction=Field("mse", "squared or absolute error", one_of("mse", "l1")),
    commitment_weight=Field(0.25, "weight of the commitment loss", NOT_NEGATIVE),
    perceptual=Field(
        "lpips",
        "'lpips' (VGG16 of `lpips_weights`) or 'features' (the same formula on the "
        "network of stage 'features')",
        one_of("none", "lpips", "features"),
    ),
    perceptual_weight=Field(1.0, "weight of the perceptual loss", NOT_NEGATIVE),
    entropy_weight=Field(
        0.0, "weight of the codes' entropy loss; 0: off", NOT_NEGATIVE
    ),
    entropy_temperature=Field(1.0, "temperature of that loss", POSITIVE),
)

_ADVERSARIAL = dict(
    weight=Field(0.75, "weight of both losses; 0: no discriminator", NOT_NEGATIVE),
    loss=Field("hinge", "loss of the discriminator", one_of("hinge", "vanilla")),
    start=Field(0, "first step of adversarial training", NOT_NEGATIVE),
    max_weight=Field(1e4, "upper bound of the adaptive weight", POSITIVE),
    ndf=Field(64, "channels of the discriminator's first layer", POSITIVE),
    layers=Field(2, "discriminator layers that halve the resolution", POSITIVE),
    r1_weight=Field(0.0, "weight of R1, the gradient penalty; 0: off", NOT_NEGATIVE),
    lecam_weight=Field(0.0, "weight of LeCam regularization; 0: off", NOT_NEGATIVE),
    optimizer=_optimizer(),
)


def _stack(layers: int) -> dict[str, Field]:
    """Returns the section of one of the transformer's stacks."""
    return dict(
        layers=Field(layers, "transformer blocks", POSITIVE),
        heads=Field(24, "attention heads; they divide the width", POSITIVE),
        gelu=Field("exact", "erf, or x sigmoid(1.702 x)", one_of("exact", "quick")),
        residual_dropout=Field(0.1, "dropout after attention and MLP", BELOW_ONE),
        attention_dropout=Field(0.0, "dropout of attention weights", BELOW_ONE),
        attention_bias=Field(True, "biases in the projections of attention"),
        mlp_bias=Field(True, "biases in the MLP"),
        norm=Field("layer", "layer norms or RMS norms", one_of("layer", "rms")),
        qk_norm=Field(False, "normalize queries and keys, for stability at scale"),
        scaled_init=Field(
            False, "scale outputs of blocks by 1 / sqrt(2 layers) at first"
        ),
    )


_TEXT = dict(
    tokenizer=Field(
        "",
        "tokenizer of the library `tokenizers`: a .json, or a folder with vocabulary "
        "and merges; '': trained on the captions of the training split",
    ),
    vocab_size=Field(16384, "size of the vocabulary", POSITIVE),
    dropout=Field(0.1, "fraction of merges skipped in training", BELOW_ONE),
    length=Field(
        32, "text tokens before the codes", Range(lambda x: x > 1, "2 tokens or more")
    ),
    weight=Field(0.1, "weight of the text loss; codes have 1 - weight", FRACTION),
)

_TRANSFORMER_MODEL = dict(
    width=Field(1536, "channels M of body and head", POSITIVE),
    body=_stack(layers=42),
    head=_stack(layers=6),
    shared_token_embedding=Field(
        True, "one table of learned embeddings for all depths"
    ),
    shared_classifier=Field(True, "one classifier for all depths"),
    body_from_codebook=Field(True, "body reads code vectors; else learned embeddings"),
    head_from_codebook=Field(True, "head reads code vectors; else learned embeddings"),
    cumulative_head=Field(True, "head reads the sum of the code vectors so far"),
    embedding_dropout=Field(0.0, "dropout of the inputs of body and head", BELOW_ONE),
    remat=Field(
        "none",
        "recomputed in the backward pass: nothing, 'full' blocks, or all but 'dots' "
        "(matrix products)",
        one_of("none", "full", "dots"),
        changed_by=_TRAIN,
    ),
    dtype=Field("float32", "dtype of matrix products", DTYPE),
)

_TRANSFORMER_LOSS = dict(
    soft_targets=Field(True, "soft targets; otherwise the nearest codes"),
    stochastic_codes=Field(True, "sampled inputs; otherwise the nearest codes"),
    temperature=Field(0.5, "temperature of soft targets and sampled inputs", POSITIVE),
    z_weight=Field(0.0, "weight of the z-loss, as 1e-4; 0: off", NOT_NEGATIVE),
    microbatches=Field(
        1,
        "groups of positions (not images), whose logits are computed one after another",
        POSITIVE,
        changed_by=("train", "evaluate"),
        was="pieces",
    ),
    head_fraction=Field(
        1.0,
        "fraction of positions at which the head is trained, drawn anew in each step; "
        "the body sees all",
        PROBABILITY,
        since="0.2",
        before=1.0,
    ),
)

SCHEMA: dict[str, Any] = dict(
    seed=Field(0, "random seed of parameters, dropout, codes and data order", SEED),
    stages=Field(
        STAGES[1:],
        "stages to run, in this order; 'features' if its network is used",
        _STAGES,
        changed_by=_TRAIN,
    ),
    init_from=Field(
        "",
        "model whose weights new stages start from: a run directory, a saved folder, a "
        "folder of the authors' checkpoints or a shipped model; '': random weights",
        since="0.2",
        before="",
    ),
    init_stages=Field(
        STARTED,
        "stages that start from the model of `init_from`; the others start afresh",
        Range(one_of(*STARTED).contains, f"{one_of(*STARTED).text}; repeat the flag"),
        since="0.2",
        before=STARTED,
    ),
    mesh=_MESH,
    data=_DATA,
    features=_FEATURES,
    rqvae=dict(
        _steps(128, 100_000, ("sample", "reconstruct", "evaluate", "rank")),
        lpips_weights=Field("", "file of `rq convert lpips`", changed_by=_TRAIN),
        codebook_init=Field(
            "random",
            "the first codebook: 'random' (restarts replace it by vectors of the first "
            "batch), or residual k-means of the first batches",
            one_of("random", "kmeans"),
            since="0.2",
            before="random",
        ),
        codebook_batches=Field(
            16,
            "batches that the first codebook is fitted to: by k-means, or if "
            "`init_from` has one of another size",
            POSITIVE,
            since="0.2",
            before=16,
        ),
        model=_RQVAE_MODEL,
        loss=_RQVAE_LOSS,
        adversarial=_ADVERSARIAL,
        optimizer=_optimizer(),
    ),
    codes=dict(
        changed_by(
            ("train", "encode"),
            batch_size=Field(64, "images that each process encodes at once", POSITIVE),
        ),
        variants=Field(1, "versions of each training image to encode", POSITIVE),
        shard_size=Field(8192, "images per file", POSITIVE),
    ),
    transformer=dict(
        _steps(2048, 62_500, ("evaluate",)),
        condition=Field(
            "none",
            "what generation is conditioned on; 'none': a start token; 'auto': the "
            "captions of the prepared data, or else their classes, or else 'none' (the "
            "run stores which, and the number of classes)",
            one_of("none", "class", "text", "class_text", "auto"),
        ),
        condition_dropout=Field(
            0.0,
            "fraction of images without condition; of 'class_text', and with a source "
            "image, as many also without class, without text, without source",
            BELOW_ONE,
        ),
        depth_dropout=Field(
            0.0,
            "fraction of images of which the body reads only the first d codes of each "
            "position, d drawn from 1 .. D, so that one model serves every "
            "sampling.depth",
            FRACTION,
            since="0.2",
            before=0.0,
        ),
        order=Field(
            "raster",
            "order of positions in training: row by row; 'random', another for each "
            "image; or 'annealed', from random to raster. With the last two any part "
            "of an image can be completed from all the rest, and "
            "sampling.parallel_steps draws several positions at once",
            one_of("raster", "random", "annealed"),
            since="0.2",
            before="raster",
        ),
        order_anneal=Field(
            (0.5, 0.75),
            "'annealed': fractions of the steps between which the probability of a "
            "random order falls from 1 to 0",
            Range(lambda x: 0 <= x <= 1, "within [0, 1]"),
            since="0.2",
            before=(0.5, 0.75),
        ),
        online=Field(False, "encode images in each step, without stored codes"),
        source_rqvae=Field(
            "",
            "RQ-VAE of the source images: a run directory, a saved folder or a shipped "
            "model; '': that of the images",
            since="0.2",
            before="",
        ),
        source_shape=Field(
            (0,),
            "rows, columns and depth of its codes; 0: found from it",
            NOT_NEGATIVE,
            since="0.2",
            before=(0,),
        ),
        source_dim=Field(
            0,
            "length of its code vectors; 0: found from it",
            NOT_NEGATIVE,
            since="0.2",
            before=0,
        ),
        codes_file=Field(
            "",
            ".npz of another tokenizer's codes (`codes`, `codebook`, and if there are "
            "`labels`, `captions`, `features`) in place of images and stage 1",
            since="0.2",
            before="",
        ),
        text=_TEXT,
        model=_TRANSFORMER_MODEL,
        loss=_TRANSFORMER_LOSS,
        optimizer=_optimizer(
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
    checkpoint=changed_by(
        _TRAIN,
        every=Field(1000, "steps between checkpoints", POSITIVE),
        keep=Field(2, "number of latest checkpoints to keep", POSITIVE),
        keep_every=Field(
            0, "also keep each multiple of this step; 0: off", NOT_NEGATIVE
        ),
        best=Field(False, "keep that of the best evaluation, for `--step=best`"),
        fallback=Field(False, "resume from an earlier one if the latest is damaged"),
    ),
    log=changed_by(
        _TRAIN,
        every=Field(50, "steps between logged scalars", POSITIVE),
        wandb=Field(
            "",
            "project of Weights & Biases to write to as well (`pip install 'rq[wandb]'`"
            "); '': none",
            since="0.2",
        ),
        eval_every=Field(1000, "steps between evaluations and pictures", POSITIVE),
        eval_batches=Field(
            0, "batches per evaluation; 0: the whole split", NOT_NEGATIVE
        ),
    ),
    profile=changed_by(
        _TRAIN,
        start=Field(0, "first step that is profiled", NOT_NEGATIVE),
        steps=Field(0, "number of profiled steps; 0: off", NOT_NEGATIVE),
    ),
)


def fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of all nested sections by dotted name."""
    found = {}
    for key, value in config.items():
        if isinstance(value, (ConfigDict, dict)):
            found |= {f"{key}.{name}": v for name, v in fields(value).items()}
        else:
            found[key] = value
    return found


def _sections(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the names in each section by its dotted name; '' is the whole config."""
    found = {"": list(config)}
    for key, value in config.items():
        if isinstance(value, dict):
            for name, children in _sections(value).items():
                found[f"{key}.{name}".rstrip(".")] = children
    return found


FIELDS: dict[str, Field] = fields(SCHEMA)
SECTIONS = _sections(SCHEMA)
RENAMED = {  # dotted names in version 0.1, and the names that replaced them
    f"{name.rpartition('.')[0]}.{field.was}": name
    for name, field in FIELDS.items()
    if field.was
}


def default() -> ConfigDict:
    """Returns the default config (paper section 4, released configs), locked."""

    def value(part):
        if not isinstance(part, Field):
            return {name: value(child) for name, child in part.items()}
        if part.or_tuple:  # of two types, which `validate` checks
            return FieldReference(part.default, field_type=object)
        return part.default

    return ConfigDict(value(SCHEMA)).lock()


def choose_variant(variant: str, known: Mapping[str, Any]) -> Any:
    """Returns the entry of `known` for a config file's variant.

    Raises:
      ConfigError: if the variant is unknown; lists the known ones.
    """
    if variant not in known:
        names = ", ".join(map(repr, known))
        raise ConfigError(f"unknown config variant {variant!r}; known: {names}")
    return known[variant]
