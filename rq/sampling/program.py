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
      min_p: keeps codes of at least this share of the highest probability; 0: all.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array


def make_filters(depth: int, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> Filters:
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
        per_depth(
            "min_p", min_p, jnp.float32, lambda x: (x >= 0) & (x <= 1), "within [0, 1]"
        ),
    )


SCHEDULES = ("constant", "linear", "cosine")


def make_guidance(code_shape, scale=1.0, schedule: str = "constant") -> jax.Array:
    """Scales of classifier-free guidance, float32 `[T, D]` (Ho and Salimans 2022).

    Args:
      code_shape: (H, W, D); T = H W.
      scale: a number, or one for each depth; 1: no guidance.
      schedule: 'constant'; or from 1 at the first position to `scale` at the last,
        'linear', or slowly at first, 'cosine'.

    Raises:
      ValueError: on another schedule, a negative scale, or a number of scales that is
        neither 1 nor D.
    """
    height, width, depth = code_shape
    scale = jnp.atleast_1d(jnp.asarray(scale, jnp.float32))
    if scale.ndim != 1 or scale.size not in (1, depth):
        raise ValueError(f"guidance: {scale.size} values for depth {depth}")
    if not (scale >= 0).all():
        raise ValueError(f"guidance {scale.tolist()} must not be negative")
    way = jnp.linspace(0, 1, height * width)[:, None]
    shares = {
        "constant": jnp.ones_like(way),
        "linear": way,
        "cosine": (1 - jnp.cos(jnp.pi * way)) / 2,
    }
    if schedule not in shares:
        raise ValueError(f"guidance schedule {schedule!r}: one of {SCHEDULES}")
    return jnp.broadcast_to(1 + (scale - 1) * shares[schedule], (len(way), depth))


def filter_logits(logits: jax.Array, temperature, top_k, top_p, min_p=0.0) -> jax.Array:
    """Scaled logits with everything outside top-k, then top-p, and min-p at -inf.

    One sort of the values serves both filters: each keeps what is not below a
    threshold, so codes of equal logits stay or go together.

    Args:
      logits: `[..., K]`.
      temperature, top_k, top_p, min_p: scalars; a top_k of 0 or K, a top_p of 1 and a
        min_p of 0 keep all.

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
    logits = jax.lax.cond(needed, keep_top, lambda logits: logits, logits)
    floor = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(min_p)
    return jnp.where(logits >= floor, logits, -jnp.inf)


def sample(
    model: RQTransformer,
    params,
    codebook: jax.Array | None,
    cond: jax.Array | None,
    key: jax.Array,
    *,
    batch: int | None = None,
    filters: Filters | None = None,
    guidance: jax.Array | None = None,
    null_cond: jax.Array | None = None,
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
      guidance: scales `[T, D]`, see `make_guidance`; None: without, at half the cost.
      null_cond: what stood for no condition in training, as `cond` for one sample
        (a scalar, or `[S]`); guidance needs it.
      first_index: index of the first sample in the job; sample i uses
        `fold_in(key, first_index + i)`.
      codes: given codes int32 `[B, H, W, D]`, of which `keep` are not drawn.
      keep: bool, broadcast to `[B, H, W, D]`.
      return_logits: also returns the logits of every step, guided but not filtered,
        `[B, H, W, D, K]`; with all codes kept this is a teacher-forced decode.

    Returns:
      codes int32 `[B, H, W, D]`.

    Raises:
      ValueError: where neither `cond` nor `batch` nor `codes` gives the batch size, or
        guidance lacks one of its two conditions.
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
    if guidance is not None:
        if cond is None or null_cond is None:
            raise ValueError("guidance needs `cond` and `null_cond`")
        null_cond = jnp.broadcast_to(jnp.asarray(null_cond, cond.dtype), cond.shape)
        cond = jnp.concatenate([cond, null_cond])
    drawn, logits = _sample(
        model,
        return_logits,
        params,
        codebook,
        cond,
        key,
        filters,
        guidance,
        jnp.asarray(first_index, jnp.int32),
        codes,
        keep,
    )
    return (drawn, logits) if return_logits else drawn


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sample(
    model,
    return_logits,
    params,
    codebook,
    cond,
    key,
    filters,
    guidance,
    first_index,
    codes,
    keep,
):
    batch, height, width, depth = codes.shape
    by_position = (height * width, batch, depth)
    # With guidance every sample has two rows: with its condition, then without.
    copies = 1 if guidance is None else 2

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
            if guidance is not None:
                told, free = jnp.split(logits, 2)
                # In this order a scale of 1 changes no bit.
                logits = told + (guidance[position, d] - 1) * (told - free)
            filtered = filter_logits(logits, *(value[d] for value in filters))
            depth_keys = jax.vmap(jax.random.fold_in, (0, None))(position_keys, d)
            drawn = jax.vmap(jax.random.categorical)(depth_keys, filtered)
            chosen = jnp.where(kept[:, d], given[:, d], drawn.astype(jnp.int32))
            return jnp.tile(chosen, copies), logits

        chosen, logits = apply("depth_codes", context, codebook, choose)
        x = apply("next_input", chosen, position, codebook)
        return (x, caches), (chosen[:batch], logits if return_logits else None)

    inputs = (jnp.arange(by_position[0]), flat(codes), flat(keep))
    carry = apply("start", cond, copies * batch)
    _, (drawn, logits) = jax.lax.scan(one_position, carry, inputs)
    drawn = jnp.moveaxis(drawn, 0, 1).reshape(codes.shape)
    if return_logits:
        logits = jnp.moveaxis(logits, 0, 1).reshape(*codes.shape, -1)
    return drawn, logits
