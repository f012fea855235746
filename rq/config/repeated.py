# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sections that several parts of the config have, with defaults of their own."""

from __future__ import annotations

import dataclasses

from rq.config.declaration import BELOW_ONE, NOT_NEGATIVE, POSITIVE, Field, one_of

DTYPE = one_of("float32", "bfloat16")


def optimizer(**defaults) -> dict[str, Field]:
    """Returns the section `optimizer`, with other defaults where given."""
    declared = dict(
        name=Field(
            "adam",
            "'adam' adds decay to gradients, the others to updates; 'adafactor' needs "
            "little memory; 'muon' is for the matrices of stage 2, with Adam for the "
            "rest; 'sgd' has momentum b1",
            one_of("adam", "adamw", "lion", "adafactor", "muon", "sgd"),
        ),
        learning_rate=Field(4e-5, "after the warm-up", POSITIVE),
        b1=Field(0.5, "decay of the mean of gradients", BELOW_ONE),
        b2=Field(0.9, "decay of the mean of squared gradients", BELOW_ONE),
        eps=Field(1e-8, "added to the root of the mean of squares", POSITIVE),
        mu_dtype=Field("float32", "of the mean of gradients", DTYPE, before="float32"),
        weight_decay=Field(0.0, "0: off", NOT_NEGATIVE),
        decay_matrices_only=Field(
            False, "decays kernels, not biases, norms and embeddings"
        ),
        clip_norm=Field(0.0, "largest global norm of gradients; 0: off", NOT_NEGATIVE),
        warmup_steps=Field(0, "linear from 0", NOT_NEGATIVE),
        min_learning_rate=Field(
            4e-5, "at the end of the cosine; constant where equal", NOT_NEGATIVE
        ),
        ema=Field(0.0, "decay of the parameters' moving average; 0: off", BELOW_ONE),
    )
    return {
        name: dataclasses.replace(field, default=defaults.get(name, field.default))
        for name, field in declared.items()
    }


def steps(batch_size: int, steps: int, commands=()) -> dict[str, Field]:
    """Returns the batch and the steps of a stage; `commands` may change the batch."""
    return dict(
        batch_size=Field(
            batch_size,
            "images in a step, over all devices",
            POSITIVE,
            changed_by=commands,
        ),
        steps=Field(steps, "training steps", POSITIVE),
        grad_accum_steps=Field(
            1,
            "microbatches that a batch is split into; their gradients are averaged",
            POSITIVE,
            was="accumulate",
        ),
    )


def stack(layers: int) -> dict[str, Field]:
    """Returns the section of one of the transformer's stacks."""
    return dict(
        layers=Field(layers, "transformer blocks", POSITIVE),
        heads=Field(24, "of attention; they divide the width", POSITIVE),
        gelu=Field(
            "exact",
            "'exact' (erf) or 'quick' (x sigmoid(1.702 x))",
            one_of("exact", "quick"),
        ),
        residual_dropout=Field(0.1, "of the outputs of attention and MLP", BELOW_ONE),
        attention_dropout=Field(0.0, "of attention weights", BELOW_ONE),
        attention_bias=Field(True, "in the projections of attention"),
        mlp_bias=Field(True, "in the MLP"),
        norm=Field("layer", "layer norms or RMS norms", one_of("layer", "rms")),
        qk_norm=Field(False, "normalizes queries and keys, for stability at scale"),
        scaled_init=Field(
            False, "initial outputs of blocks are smaller by 1 / sqrt(2 layers)"
        ),
    )
