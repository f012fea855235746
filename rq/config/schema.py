# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Every field of the config: its default, its type, what it means."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from rq.config.errors import ConfigError
from rq.config.sampling import SamplingConfig

STAGES = ("features", "rqvae", "codes", "transformer")
FROM_PATH = ("folder", "tar", "tsv")  # data.name of images that data.path names


def _optimizer(**changes) -> dict[str, Any]:
    settings = dict(
        # 'adam' (decay added to gradients), 'adamw' (to updates, as in the others),
        # 'lion', 'adafactor' (by b1 alone; little memory), 'muon' (matrices of stage 2,
        # the rest Adam; tells rare words apart sooner), 'sgd' (with momentum b1).
        name="adam",
        learning_rate=4e-5,  # after the warm-up
        b1=0.5,  # decay of the mean of gradients
        b2=0.9,  # decay of the mean of their squares
        eps=1e-8,
        mu_dtype="float32",  # of the mean of gradients; 'bfloat16' takes half of it
        weight_decay=0.0,
        decay_matrices_only=False,  # kernels only, not biases, norms and embeddings
        clip_norm=0.0,  # largest global norm of the gradients; 0: off
        warmup_steps=0,  # linear from 0
        min_learning_rate=4e-5,  # where the cosine ends; = learning_rate: constant
        ema=0.0,  # decay of the moving average of the parameters; 0: off
    )
    return settings | changes


def _stack(layers: int) -> dict[str, Any]:
    return dict(
        layers=layers,
        heads=24,  # of attention; they divide the width
        gelu="exact",  # 'exact' (erf) or 'quick' (x sigmoid(1.702 x))
        residual_dropout=0.1,  # of what attention and MLP add
        attention_dropout=0.0,  # of attention weights
        attention_bias=True,
        mlp_bias=True,
        norm="layer",  # 'layer' or 'rms'
        qk_norm=False,  # of queries and keys, for stability at scale
        scaled_init=False,  # what layers add starts smaller, by 1 / sqrt(2 layers)
    )


def default() -> ConfigDict:
    """Every field, with its default (paper section 4 and the released configs)."""
    config = dict(
        seed=0,  # of parameters, dropout, stochastic codes and the order of the data
        stages=STAGES[1:],  # which to run, in this order; 'features' where it is used
        mesh=dict(  # devices along each axis, one of them -1: whatever is left
            data=-1,  # copies of the model
            fsdp=1,  # parts that parameters and optimizer state are split into
            tensor=1,  # parts that heads, MLP and vocabulary are split into
        ),
        data=dict(
            # TFDS name, with its config after a slash; or 'folder' (of images), 'tar'
            # (shards of WebDataset's layout), 'tsv' (file and caption in each line).
            name="imagenet2012",
            path="",  # of 'folder', 'tar', 'tsv'
            dir="",  # where TFDS keeps its sets; '': ~/tensorflow_datasets
            train_split="train",
            eval_split="validation",
            holdout=1000,  # images to validate with, where `path` has no such split
            resolution=256,  # pixels, side of the square images
            channels=3,  # 3 colour, 1 grey
            num_classes=0,  # labels are 0 .. num_classes - 1; 0: no labels
            # 'none' (already of this resolution); 'flip' (that, flipped half of the
            # time); 'crop_flip' (resize the short side, random crop, flip);
            # 'resized_crop_flip' (random crop of scale 0.75 to 1, ratio 1, flip);
            # 'center' (resize the short side, centre crop); 'dalle' (square crop about
            # the centre, resize to 1 to 9/8, random crop).
            augment="none",
            threads=2,  # that read and decode, per process
            prefetch=8,  # batches read ahead
        ),
        features=dict(  # a small network trained on the data, for perceptual losses
            batch_size=64,  # global, images a step
            steps=2000,
            accumulate=1,  # pieces that a batch is taken in, one after the other
            objective="class",  # what it predicts: 'class', or 'rotation' by 90 degrees
            model=dict(
                widths=(32, 64, 128),  # channels of each block, each half the size
                convs=(2, 2, 2),  # convolutions of each block
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
        ),
        rqvae=dict(  # stage 1
            batch_size=128,  # global, images a step
            steps=100_000,
            accumulate=1,
            lpips_weights="",  # file of `python -m rq.convert lpips`
            model=dict(
                ch=128,  # channels of the first level
                ch_mult=(1, 1, 2, 2, 4, 4),  # of each level, each half the one before
                num_res_blocks=2,  # of a level; the decoder has one more
                attn_resolutions=(8,),  # sides, in pixels, of levels with attention
                z_channels=256,  # of the encoder's output
                embed_dim=256,  # of the feature map that is quantized
                code_shape=(8, 8, 4),  # rows, columns, depth D
                num_codes=(16384,),  # K, one or one for each depth
                shared_codebook=True,  # one codebook for all depths
                decay=(0.99,),  # of codebook averages, one or one for each depth
                restart_codes=True,  # unused codes restart from vectors of the batch
                cosine=False,  # codes of one length at each depth, compared by angle
                fsq_levels=(0,),  # a fixed grid of so many levels by channel; 0: off
                gradient="straight_through",  # past the quantizer; or 'rotation'
                depth_dropout=0.0,  # share of training images cut to a random depth
                dtype="float32",  # of convolutions: 'float32' or 'bfloat16'
            ),
            loss=dict(
                reconstruction="mse",  # 'mse' or 'l1'
                commitment_weight=0.25,
                # 'none'; 'lpips' (VGG16 of `lpips_weights`); 'features' (the network
                # of stage `features`, in the same formula).
                perceptual="lpips",
                perceptual_weight=1.0,
                entropy_weight=0.0,  # sharp assignments, even use of codes; 0: off
                entropy_temperature=1.0,  # of these soft assignments
            ),
            adversarial=dict(
                weight=0.75,  # of the losses of both sides; 0: no discriminator
                loss="hinge",  # the discriminator's: 'hinge' or 'vanilla'
                start=0,  # step at which both sides begin
                max_weight=1e4,  # bound of the adaptive weight
                ndf=64,  # channels of the discriminator's first layer
                layers=2,  # of it that halve the resolution
                r1_weight=0.0,  # gradient penalty at real images; 0: off
                lecam_weight=0.0,  # pull towards moving means of logits; 0: off
                optimizer=_optimizer(),
            ),
            optimizer=_optimizer(),
        ),
        codes=dict(
            batch_size=64,  # images that a process encodes at once
            variants=1,  # of each training image: its centre, then augmented ones
            shard_size=8192,  # images in a file
        ),
        transformer=dict(  # stage 2
            batch_size=2048,  # global, images a step
            steps=62_500,
            accumulate=1,
            condition="none",  # 'none' (a start token), 'class', 'text', 'class_text'
            condition_dropout=0.0,  # share of images trained without it, for guidance
            online=False,  # encodes images in each step, without stored codes
            text=dict(  # for conditions 'text' and 'class_text'
                # Of the library `tokenizers`: its .json, or a folder with vocabulary
                # and merges; '': trained on the captions of the training split.
                tokenizer="",
                vocab_size=16384,
                dropout=0.1,  # of merges, in training
                length=32,  # tokens in front of the codes
                weight=0.1,  # of the text's loss; the codes' has the rest
            ),
            model=dict(
                width=1536,
                body=_stack(layers=42),  # over positions
                head=_stack(layers=6),  # over depth
                shared_token_embedding=True,  # learned embeddings, if any, over depth
                shared_classifier=True,  # over depth
                body_from_codebook=True,  # otherwise learned embeddings
                head_from_codebook=True,
                cumulative_head=True,  # the head sees sums of code vectors so far
                embedding_dropout=0.0,
                remat="none",  # recomputed: 'none', 'full' blocks, all but 'dots'
                dtype="float32",  # of matrix products: 'float32' or 'bfloat16'
            ),
            loss=dict(
                soft_targets=True,  # otherwise the nearest codes
                stochastic_codes=True,  # otherwise the nearest codes are the input
                temperature=0.5,  # tau of both
                z_weight=0.0,  # keeps the logits' normaliser near 1; 1e-4 where used
                pieces=1,  # of positions; logits exist for one piece at a time
            ),
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
        sampling=dataclasses.asdict(SamplingConfig()),  # see rq/config/sampling.py
        checkpoint=dict(
            every=1000,  # steps
            keep=2,  # the latest so many stay
            keep_every=0,  # and those of multiples of so many steps; 0: none
            best=False,  # and that of the best evaluation: `--step=best`
            fallback=False,  # goes back past one whose files are missing or cut off
        ),
        log=dict(
            every=50,  # steps between scalars
            eval_every=1000,  # steps between evaluations and pictures
            eval_batches=0,  # 0: the whole evaluation split
        ),
        profile=dict(
            start=0,  # first step of the trace
            steps=0,  # its length; 0: off
        ),
    )
    return ConfigDict(config).lock()


def fields(config: ConfigDict | dict) -> dict[str, Any]:
    """Every field by its dotted name, sections opened up."""
    found = {}
    for key, value in config.items():
        if isinstance(value, (ConfigDict, dict)):
            found |= {f"{key}.{name}": v for name, v in fields(value).items()}
        else:
            found[key] = value
    return found


def sections(config: ConfigDict) -> dict[str, list[str]]:
    """Names of the fields and sections in each section, '' being the whole config."""
    found = {"": list(config)}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            for name, children in sections(value).items():
                found[f"{key}.{name}".rstrip(".")] = children
    return found


def choose_variant(variant: str, known: Mapping[str, Any]) -> Any:
    """The entry of a config file's variant.

    Raises:
      ConfigError: naming the known ones.
    """
    if variant not in known:
        raise ConfigError(
            f"unknown config variant {variant!r}; "
            f"known: {', '.join(repr(name) for name in known)}"
        )
    return known[variant]


def unknown_field(name: str) -> ConfigError:
    """The error for a dotted name that is no field, with the likely one."""
    schema = default()
    names, children = fields(schema), sections(schema)
    if name in children:
        some = ", ".join(children[name])
        return ConfigError(f'"{name}" is a section; set one of its fields: {some}')
    section, _, leaf = name.rpartition(".")
    if section in children:
        close = difflib.get_close_matches(leaf, children[section], 1, 0.5)
        guesses = [f"{section}.{child}".lstrip(".") for child in close]
    else:
        guesses = difflib.get_close_matches(name, names, 1, 0.7)
    if not guesses:  # the right name in the wrong place
        same = [n for n in names if n.rpartition(".")[2] == leaf]
        guesses = [n for n in same if n.startswith(f"{section}.")] or same[:3]
    if guesses:
        hint = "did you mean " + " or ".join(f'"{n}"' for n in guesses) + "?"
    else:
        hint = "known there: " + ", ".join(children.get(section, children[""]))
    return ConfigError(f'unknown config field "{name}"; {hint}')


def check_types(given: Mapping[str, Any]) -> None:
    """Raises ConfigError where fields, by dotted name, are not those of the schema."""
    known = fields(default())
    for name in given:
        if name not in known:
            raise unknown_field(name)
    for name, example in known.items():
        if name not in given:
            raise ConfigError(f'missing config field "{name}"')
        if not _has_type(given[name], example):
            wanted = type_name(example)
            raise ConfigError(f"{name} = {given[name]!r}: must be {wanted}")


def _has_type(value, example) -> bool:
    if isinstance(example, tuple):
        is_tuple = isinstance(value, tuple)
        return is_tuple and all(_has_type(v, example[0]) for v in value)
    if isinstance(example, float):
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is type(example)


def type_name(example) -> str:
    """What a field takes, in words."""
    if isinstance(example, tuple):
        return f"a tuple of {type(example[0]).__name__}"
    names = {bool: "true or false", str: "a string", float: "a finite number"}
    return names.get(type(example), "an integer")
