# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Probabilities of one image's codes, one after another, for entropy coding.

Who decodes must know each code before the next probabilities can be computed, so each
is a call of its own. Who encodes makes the same calls of the same compiled programs, so
that both see the same floats: not those of a whole sequence or another batch size,
which round otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rq.models import decoding, row_sums
from rq.models.transformer import RQTransformer
from rq.models.unroll import unroll


class CodeSteps:
    """Computes p(code | those before it) of one image at a time, on one device."""

    def __init__(self, model: RQTransformer, params, codebook, device=None):
        """Takes the transformer, its parameters and code vectors.

        Args:
          model, params, codebook: as `rq.sampling.sample` takes them.
          device: the device; the first if None.
        """
        self.model, params = unroll(model, params)
        self._device = jax.local_devices()[0] if device is None else device
        self._weights = jax.device_put((params, codebook), self._device)

    def run(
        self,
        cond: np.ndarray | None,
        first: int,
        depth: int,
        known: np.ndarray,
        choose: Callable[[jax.Array, int, int], int],
    ) -> np.ndarray:
        """Returns codes chosen at depths `first` to `depth`, in raster order.

        The body reads the first `depth` codes of each earlier position, and the head
        those before it at the same one.

        Args:
          cond: int32, a class or tokens `[S]`; None: the start token.
          first: depths that are known already.
          depth: depths that are known afterwards.
          known: int32 `[T, first]`.
          choose: function of (probabilities float32 `[K]` on the device, position,
            index of the depth) that returns the code.

        Returns:
          int32 `[T, depth]`.
        """
        codes = np.zeros((len(known), depth), np.int32)
        codes[:, :first] = known
        with jax.default_device(self._device):
            cond = None if cond is None else jnp.asarray(cond)[None]
            x, caches = _start(self.model, self._weights, cond)
            for position, at in enumerate(codes):
                found, head, caches = _position(
                    self.model, self._weights, x, caches, position
                )
                for d in range(depth):
                    if d:
                        found, head = _depth(
                            self.model, self._weights, head, at[d - 1 : d], d
                        )
                    if d >= first:
                        at[d] = choose(found, position, d)
                x = _next(self.model, self._weights, at[None], position)
        return codes


@functools.partial(jax.jit, static_argnums=0)
def _start(model, weights, cond):
    first = jnp.zeros(1, jnp.int32) if model.any_order else None
    return model.apply({"params": weights[0]}, cond, 1, first, method=decoding.start)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _position(model, weights, x, caches, position):
    """Returns probabilities `[K]` at the first depth, and both carries."""
    params, codebook = {"params": weights[0]}, weights[1]
    context, caches = model.apply(
        params, x, caches, position, method=decoding.position_step
    )
    head = model.apply(
        params, context, codebook, model.depth, method=decoding.start_depths
    )
    logits, head = model.apply(params, head, 0, method=decoding.depth_step)
    return row_sums.softmax(logits)[0], head, caches


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _depth(model, weights, head, code, depth):
    """Returns probabilities `[K]` after the code `[1]` before a depth; the carry."""
    params, codebook = {"params": weights[0]}, weights[1]
    head = model.apply(
        params, head, code, depth - 1, codebook, method=decoding.next_depth
    )
    logits, head = model.apply(params, head, depth, method=decoding.depth_step)
    return row_sums.softmax(logits)[0], head


@functools.partial(jax.jit, static_argnums=0)
def _next(model, weights, codes, position):
    params, codebook = {"params": weights[0]}, weights[1]
    # After the last position nothing is read.
    following = (position + 1) % model.positions if model.any_order else None
    return model.apply(
        params, codes, position, codebook, following, method=decoding.next_input
    )
