# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Single steps of an RQ-Transformer, for decoding code by code (paper section 3.2).

    start: the condition  ->  position_step: a context h_t
    depth_codes: the codes of position t  ->  next_input  ->  position_step ...

Each function takes a bound model whose layers are unrolled (`rq.models.unroll`):
`model.apply(variables, ..., method=position_step)`. Caches are explicit, in and out.

Legend and dtypes: see `rq.models.transformer`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rq.models.stack import Group
from rq.models.transformer import RQTransformer, at_positions
from rq.parallel import sharding


def init_caches(model: RQTransformer, batch: int, extra: int = 0) -> tuple:
    """Returns empty caches of the body, `[2, B, N, P + S + T - 1 + extra, F]`.

    There is one for each layer.

    Args:
      batch: B.
      extra: places more than there are tokens, see `group_step`.
    """
    length = model.prefix_length + model.positions - 1
    return _caches(model, model.body, batch, length + extra)


def _caches(model: RQTransformer, config, batch, length):
    shape = (2, batch, config.heads, length, model.width // config.heads)
    zeros = jnp.zeros(shape, model.dtype)
    zeros = sharding.constrain(zeros, None, "batch", "heads", None, None)
    return (zeros,) * config.layers


def start(
    model: RQTransformer, cond, batch: int, first=None, extra: int = 0, codebook=None
):
    """Reads the condition.

    Args:
      cond: see `RQTransformer.__call__`.
      batch: B.
      first: int32 `[B]`, the first position, with `any_order`.
      extra: see `init_caches`.
      codebook: see `RQTransformer.__call__`; only a source image needs it.

    Returns:
      the body's next input, float32 `[B, M]`, and its caches.
    """
    tokens_BSM = model.prefix_tokens(cond, batch, codebook)
    caches = init_caches(model, batch, extra)
    if model.prefix_length > 1:
        prefix_BSM = tokens_BSM[:, :-1].astype(model.dtype)
        _, caches = model.body_stack(prefix_BSM, caches, 0)
    x_BM = tokens_BSM[:, -1]
    if first is not None:
        x_BM += model.target_positions[first]
    return x_BM.astype(jnp.float32), caches


def start_from(
    model: RQTransformer, codes_BTD, cond, codebook, order, extra: int = 0, depths=None
):
    """Returns caches as if all codes had been read in an order, with `any_order`.

    Places from some position on may be overwritten, to read others from there on.

    Args:
      codes_BTD, cond, codebook, order, depths: see `RQTransformer.body_inputs`.
      extra: see `init_caches`.
    """
    x_BSM = model.body_inputs(codes_BTD, cond, codebook, order, depths)
    caches = init_caches(model, len(codes_BTD), extra)
    return model.body_stack(x_BSM.astype(model.dtype), caches, 0)[1]


def position_step(model: RQTransformer, x_BM, caches, step):
    """Returns the body's output `[B, M]` of position number `step`, and caches."""
    index = model.prefix_length - 1 + step
    x_B1M, caches = model.body_stack(x_BM[:, None].astype(model.dtype), caches, index)
    return x_B1M[:, 0], caches


def group_step(model: RQTransformer, chain_BNM, queries_BNM, caches, before, step):
    """Returns the body's outputs of several positions at once, and its caches.

    Each sees what was read before, but not the others. What the body would have
    read between the positions of the group before, had they come one by one, is
    read now, as a chain. Tokens may be more than are needed (padding): their places
    are overwritten by the next group's, and no other token sees them.

    Args:
      chain_BNM: inputs `[B, G - 1, M]` of positions number `before` + 1 and on.
      queries_BNM: inputs `[B, G, M]` of positions number `step` and on.
      caches: with `extra` of G or more.
      before, step: numbers of the first position of the group before, and of this.

    Returns:
      `[B, G, M]` and caches.
    """
    first = model.prefix_length - 1
    group = Group(first + before + 1, first + step, queries_BNM.shape[1])
    x_BNM = jnp.concatenate([chain_BNM, queries_BNM], axis=1)
    x_BNM, caches = model.body_stack(x_BNM.astype(model.dtype), caches, group)
    return x_BNM[:, chain_BNM.shape[1] :], caches


def group_contexts(
    model: RQTransformer, codes_BTD, cond, codebook, order, depths, first, asked_BG
):
    """Returns the body's outputs `[B, G, M]`, of each position as if it came next.

    Reads everything anew: for positions of which more codes are known than before.

    Args:
      codes_BTD, cond, codebook, order: see `RQTransformer.body_inputs`.
      depths: int32 `[B, T]`, how many codes are read, in the order.
      first: how many positions are read, the first in the order.
      asked_BG: the positions that are asked for, int32 `[B, G]`.
    """
    batch, places = asked_BG.shape
    caches = start_from(model, codes_BTD, cond, codebook, order, places, depths)

    start_BM = model.prefix_tokens(cond, batch, codebook)[:, -1]
    last_B = order[:, jnp.maximum(first - 1, 0)]
    codes_BD = jnp.take_along_axis(codes_BTD, last_B[:, None, None], axis=1)
    depth_B = depths[:, jnp.maximum(first - 1, 0)]
    last_BM = model.body_tokens(codes_BD, codebook, depth_B)[:, 0]
    last_BM += model.body_positions[last_B]
    x_BGM = queries(model, jnp.where(first == 0, start_BM, last_BM), asked_BG)
    hints_BTM = model.source_hints(cond, batch, codebook)
    if hints_BTM is not None:
        x_BGM += at_positions(hints_BTM, asked_BG)
    place = model.prefix_length - 1 + first
    group = Group(place, place, places)
    return model.body_stack(x_BGM.astype(model.dtype), caches, group)[0]


def next_input(model: RQTransformer, codes, position, codebook, following=None):
    """Returns the body's next inputs `[..., M]`, float32.

    Args:
      codes: int32 `[..., D]`, at `position`.
      position: int32, a scalar or `[...]`.
      codebook: see `RQTransformer.__call__`.
      following: int32 `[...]`, the position that comes next, with `any_order`.
    """
    x = model.body_tokens(codes, codebook) + model.body_positions[position]
    if following is not None:
        x += model.target_positions[following]
    return x.astype(jnp.float32)


def queries(model: RQTransformer, x_BM, asked_BG):
    """Returns inputs `[B, G, M]` that ask for positions `[B, G]`, after `x_BM`."""
    return x_BM[:, None] + model.target_positions[asked_BG]


def depth_codes(
    model: RQTransformer, context_BM, codebook, choose, depth: int | None = None
):
    """Chooses the codes of one position, depth by depth.

    Args:
      context_BM: the body's output.
      codebook: code vectors, as in `RQTransformer.__call__`.
      choose: function of (logits `[B, K]`, depth) to codes int32 `[B]` and the
        logits to return.
      depth: D, how many; all that the model has if None.

    Returns:
      codes int32 `[B, D]` and the logits that `choose` returned, `[.., D, K]`.
    """

    def one_depth(carry, depth):
        logits, carry = depth_step(model, carry, depth)
        codes, logits = choose(logits, depth)
        return next_depth(model, carry, codes, depth, codebook), (codes, logits)

    depth = depth or model.depth
    carry = start_depths(model, context_BM, codebook, depth)
    _, (codes, logits) = jax.lax.scan(one_depth, carry, jnp.arange(depth))
    return jnp.moveaxis(codes, 0, 1), jnp.moveaxis(logits, 0, 1)


def start_depths(model: RQTransformer, context_BM, codebook, depth: int):
    """Returns the head's carry at a position: its input, code vectors, caches.

    Args:
      context_BM, codebook: see `depth_codes`.
      depth: how many codes there is room for.
    """
    batch, channels = context_BM.shape[0], model.head_table(codebook).shape[-1]
    return (
        context_BM.astype(jnp.float32),
        jnp.zeros((batch, channels), jnp.float32),
        _caches(model, model.head, batch, depth),
    )


def depth_step(model: RQTransformer, carry, depth):
    """Returns float32 logits `[B, K]` of the codes at a depth, and the carry."""
    x_BM, total_BC, caches = carry
    x_B1M = (x_BM + model.head_positions[depth])[:, None].astype(model.dtype)
    x_B1M, caches = model.head_stack(x_B1M, caches, depth)
    return model.classify(x_B1M[:, 0], depth), (x_BM, total_BC, caches)


def next_depth(model: RQTransformer, carry, codes_B, depth, codebook):
    """Returns the carry after the codes `[B]` at a depth."""
    _, total_BC, caches = carry
    table = model.head_table(codebook)
    vectors = table[codes_B] if table.ndim == 2 else table[depth, codes_B]
    vectors = vectors.astype(jnp.float32)
    summed = model.head_from_codebook and model.cumulative_head
    total_BC = total_BC + vectors if summed else vectors
    x_BM = model.head_tokens(total_BC).astype(jnp.float32)
    return x_BM, total_BC, caches
