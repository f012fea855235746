# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Sampling codes: one compiled program for a whole batch (paper section 3.2).

A scan over positions with the body's caches in its carry, a scan over depth inside it,
nothing crosses to the host in between. Filters are traced numbers, so that another
temperature compiles nothing. Every sample has a random key of its own, folded from its
index: what it becomes does not depend on the batch that it is drawn in.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rq.models.transformer import RQTransformer, unroll


class Filters(NamedTuple):
    """How codes are drawn from logits, at each depth `[D]` (or for one draw, scalars).

    Attributes:
      temperature: divides the logits.
      top_k: keeps the k most probable codes, and ties with the last; 0: all.
      top_p: then keeps the most probable codes until their mass reaches p; 1: all.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array


def make_filters(depth: int, temperature=1.0, top_k=0, top_p=1.0) -> Filters:
    """Numbers, or one for each depth, to `Filters` `[D]`.

    Raises:
      ValueError: on a number of values that is neither 1 nor `depth`, or out of range.
    """

    def per_depth(name, value, dtype, ok, wanted):
        value = jnp.atleast_1d(jnp.asarray(0 if value is None else value, dtype))
        if value.ndim != 1 or value.size not in (1, depth):
            raise ValueError(f"{name}: {value.size} values for depth {depth}")
        if not ok(value).all():
            raise ValueError(f"{name} {value.tolist()} must be {wanted}")
        return jnp.broadcast_to(value, (depth,))

    top_p = 1.0 if top_p is None else top_p
    return Filters(
        per_depth("temperature", temperature, jnp.float32, lambda x: x > 0, "above 0"),
        per_depth("top_k", top_k, jnp.int32, lambda x: x >= 0, "0 (off) or more"),
        per_depth(
            "top_p", top_p, jnp.float32, lambda x: (x > 0) & (x <= 1), "within (0, 1]"
        ),
    )


def filter_logits(logits: jax.Array, temperature, top_k, top_p) -> jax.Array:
    """Scaled logits with everything outside top-k, then top-p, at -inf.

    One sort of the values serves both filters: each keeps what is not below a
    threshold, so codes of equal logits stay or go together.

    Args:
      logits: `[..., K]`.
      temperature, top_k, top_p: scalars; a top_k of 0 or K, a top_p of 1 keep all.

    Returns:
      float32 `[..., K]`.
    """
    num_codes = logits.shape[-1]
    logits = logits.astype(jnp.float32) / temperature
    logits = jnp.where(jnp.isnan(logits), -jnp.inf, logits)
    top_k = jnp.where(top_k == 0, num_codes, jnp.minimum(top_k, num_codes))

    def keep_top(logits):
        ranked = -jnp.sort(-logits, axis=-1)
        kth = jnp.take(ranked, top_k - 1, axis=-1)[..., None]
        probs = jax.nn.softmax(jnp.where(ranked >= kth, ranked, -jnp.inf), axis=-1)
        before = jnp.cumsum(probs, axis=-1) - probs
        # The first code stays always, and the one with which the mass reaches p.
        kept = jnp.sum((before < top_p) & (probs > 0), axis=-1, keepdims=True)
        last = jnp.take_along_axis(ranked, jnp.maximum(kept, 1) - 1, axis=-1)
        threshold = jnp.where(top_p < 1, jnp.maximum(last, kth), kth)
        return jnp.where(logits >= threshold, logits, -jnp.inf)

    needed = (top_k < num_codes) | (top_p < 1)
    return jax.lax.cond(needed, keep_top, lambda logits: logits, logits)


def sample(
    model: RQTransformer,
    params,
    codebook: jax.Array | None,
    cond: jax.Array | None,
    key: jax.Array,
    *,
    batch: int | None = None,
    filters: Filters | None = None,
    first_index=0,
    codes: jax.Array | None = None,
    keep: jax.Array | None = None,
    return_logits: bool = False,
):
    """Draws code maps.

    Args:
      model: the transformer; `unroll` it (and its parameters) once when sampling many
        batches, else this does it each time.
      params: its parameters.
      codebook: code vectors `[K, C]` or `[D, K, C]`.
      cond: int32 `[B]` classes or `[B, S]` text; None: the start token, B from `batch`.
      key: random key of the whole job.
      filters: see `make_filters`; none where None.
      first_index: index of the first sample in the job; sample i uses
        `fold_in(key, first_index + i)`.
      codes: given codes int32 `[B, H, W, D]`, of which `keep` are not drawn.
      keep: bool, broadcast to `[B, H, W, D]`.
      return_logits: also returns the logits of every step, `[B, H, W, D, K]`; with all
        codes kept this is a teacher-forced decode.

    Returns:
      codes int32 `[B, H, W, D]`.

    Raises:
      ValueError: where neither `cond` nor `batch` nor `codes` gives the batch size.
    """
    batches = [x.shape[0] for x in (cond, codes) if x is not None] + [batch]
    if batches[0] is None:
        raise ValueError("sampling needs `cond`, `codes` or `batch`")
    model, params = unroll(model, params)
    if filters is None:
        filters = make_filters(model.depth)
    if codes is None:
        codes = jnp.zeros((batches[0], *model.code_shape), jnp.int32)
        keep = False
    keep = jnp.broadcast_to(jnp.asarray(keep, bool), codes.shape)
    drawn, logits = _sample(
        model,
        return_logits,
        params,
        codebook,
        cond,
        key,
        filters,
        jnp.asarray(first_index, jnp.int32),
        codes,
        keep,
    )
    return (drawn, logits) if return_logits else drawn


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sample(
    model, return_logits, params, codebook, cond, key, filters, first_index, codes, keep
):
    batch, height, width, depth = codes.shape
    by_position = (height * width, batch, depth)

    def apply(method, *args):
        return model.apply({"params": params}, *args, method=method)

    def flat(x):
        return jnp.moveaxis(x.reshape(batch, height * width, depth), 1, 0)

    indices = first_index + jnp.arange(batch, dtype=jnp.int32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)

    def one_position(carry, inputs):
        x, caches = carry
        position, given, kept = inputs
        context, caches = apply("position_step", x, caches, position)
        position_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, position)

        def choose(logits, d):
            logits = filter_logits(logits, *(value[d] for value in filters))
            depth_keys = jax.vmap(jax.random.fold_in, (0, None))(position_keys, d)
            drawn = jax.vmap(jax.random.categorical)(depth_keys, logits)
            return jnp.where(kept[:, d], given[:, d], drawn.astype(jnp.int32))

        chosen, logits = apply("depth_codes", context, codebook, choose)
        x = apply("next_input", chosen, position, codebook)
        return (x, caches), (chosen, logits if return_logits else None)

    inputs = (jnp.arange(by_position[0]), flat(codes), flat(keep))
    carry = apply("start", cond, batch)
    _, (drawn, logits) = jax.lax.scan(one_position, carry, inputs)
    drawn = jnp.moveaxis(drawn, 0, 1).reshape(codes.shape)
    if return_logits:
        logits = jnp.moveaxis(logits, 0, 1).reshape(*codes.shape, -1)
    return drawn, logits
