# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Converts a trained RQ-Transformer to the layout of decoding."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rq.models.projection import output_major
from rq.models.stack import QKV
from rq.models.transformer import RQTransformer


def decoding(model: RQTransformer, precision: str | None = None) -> RQTransformer:
    """Returns the model whose parameters are those of `unroll`, see there."""
    precision = precision or jnp.dtype(model.dtype).name
    dtype = model.dtype if precision == "int8" else precision
    return model.clone(precision=precision, dtype=dtype)


def unroll(
    model: RQTransformer, params, precision: str | None = None
) -> tuple[RQTransformer, dict]:
    """Returns the model and parameters in the layout of decoding.

    Layers are separate arrays, weights are output-major, and one matrix has those of
    queries, keys and values.

    Args:
      model: the trained model.
      params: its parameters.
      precision: 'float32' or 'bfloat16', of weights and products; 'int8': weights and
        the rows that they multiply are rounded to int8, with a scale for each output
        and row, and the rest is in the model's dtype; None: the model's dtype.
    """
    if model.precision is not None:
        return model, params
    decoder, params = decoding(model, precision), dict(nn.unbox(params))
    weights: Any = decoder.precision

    def convert(tree):
        """Converts the dense layers of a tree."""
        if not isinstance(tree, dict):
            return tree
        if "kernel" not in tree:
            return {name: convert(x) for name, x in tree.items()}
        layer = output_major(tree["kernel"], weights)
        if "bias" in tree:
            layer["bias"] = tree["bias"].astype(decoder.dtype)
        return layer

    def block(params, heads):
        params = {name: dict(x) for name, x in params.items()}
        attention = params["attention"]
        each = [convert(attention.pop(name)) for name in QKV]
        attention["qkv"] = jax.tree.map(
            lambda *x: jnp.stack(
                [part.reshape(heads, -1, *part.shape[1:]) for part in x]
            ),
            *each,
        )
        return convert(params)

    for name, config in (("body_stack", model.body), ("head_stack", model.head)):
        blocks = params[name]["blocks"]
        layers = [
            jax.tree.map(lambda x, i=i: x[i], blocks) for i in range(config.layers)
        ]
        params[name] = {
            f"blocks_{i}": block(layer, config.heads) for i, layer in enumerate(layers)
        }
    for name in ("body_input", "head_input", "source_input"):
        if name in params:
            params[name] = convert(params[name])
    classifier = output_major(params.pop("classifier_kernel"), weights)
    params |= {f"classifier_{name}": x for name, x in classifier.items()}
    return decoder, params
