# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Optimizers, the learning rate schedule, parameter averages, gradient accumulation."""

from __future__ import annotations

import functools
import math
import operator

import jax
import jax.numpy as jnp
import optax
import optax.contrib


def warmup_cosine(
    learning_rate: float,
    steps: float,
    warmup_steps: float = 0,
    min_learning_rate: float = 0.0,
    *,
    buffer_steps: float = 0,
    multiplier: float = 1.0,
    start_from_zero: bool = True,
) -> optax.Schedule:
    """Returns the authors' schedule: linear warm-up, a plateau, half a cosine.

    As in their code, a warm-up starts at 0, the cosine begins one step after the
    plateau, and with a fractional warm-up the peak is the rate of its last whole step.
    With `min_learning_rate = learning_rate` it is constant after the warm-up.

    Args:
      learning_rate: before the multiplier.
      steps: number of steps of the whole training.
      warmup_steps, buffer_steps: length of warm-up and plateau; may be fractional.
      min_learning_rate: at the end.
      multiplier: factor of the peak, only used with a warm-up (the authors' 'linear'
        and 'sqrt' modes set it to the number of GPUs or its root).
      start_from_zero: whether the warm-up starts at 0, or else at `learning_rate`.

    Returns:
      A function of the step, counted from 0.
    """
    plateau = 0
    peak = learning_rate
    if warmup_steps > 0:
        done = math.floor(warmup_steps) / warmup_steps
        factor = multiplier if start_from_zero else multiplier - 1
        peak = learning_rate * (factor * done + (0 if start_from_zero else 1))
        plateau = math.floor(warmup_steps + buffer_steps)
    decay_steps = max(steps - warmup_steps - buffer_steps, 1)

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        # (1 + cos(pi t)) / 2 as a sine of the remaining steps: exact near 0.
        left = jnp.clip((decay_steps + plateau - step) / decay_steps, 0, 1)
        cosine = jnp.sin(jnp.pi / 2 * left) ** 2
        rate = min_learning_rate + (peak - min_learning_rate) * cosine
        if warmup_steps > 0:
            rising = jnp.minimum(step / warmup_steps, 1) * multiplier
            if not start_from_zero:
                rising = 1 + jnp.minimum(step / warmup_steps, 1) * (multiplier - 1)
            rate = jnp.where(step <= warmup_steps, learning_rate * rising, rate)
        return rate

    return schedule


def is_matrix(params):
    """Returns a tree of bools, True for kernels of convolutions and matrix products.

    Kernels are found by name: biases and norms of scanned layers have two axes, too.
    """

    def check(path, _):  # boxes of axis names add path entries without a key
        names = [str(step.key) for step in path if hasattr(step, "key")]
        return names[-1].endswith("kernel")

    return jax.tree_util.tree_map_with_path(check, params)


def _adam(b1: float, b2: float, eps: float, dtype) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1, b2, eps, mu_dtype=dtype)


def _muon(b1: float, b2: float, eps: float, dtype) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for the matrices of attention and MLP, Adam elsewhere.

    The momentum of each layer's matrix is orthogonalized, and scaled to the root mean
    square of Adam's updates, 0.2 (Liu et al. 2025, eq. 4), so that one learning rate
    serves both. Rarely updated weights get equally large updates.

    Raises:
      ValueError: at `init`, if the parameters are not those of an RQ-Transformer.
    """

    def axes(tree):
        names = optax.contrib.MuonDimensionNumbers(-2, -1)
        return jax.tree.map(lambda _: names, tree)

    def scaled(updates, _):
        return jax.tree.map(lambda x: 0.2 * max(x.shape[-2:]) ** 0.5 * x, updates)

    def which(params):
        def one(path, _):
            names = [str(step.key) for step in path if hasattr(step, "key")]
            inside = {"body_stack", "head_stack"} & set(names)
            return "muon" if inside and names[-1] == "kernel" else "adam"

        tree = jax.tree_util.tree_map_with_path(one, params)
        if "muon" not in jax.tree.leaves(tree):
            raise ValueError("optimizer 'muon' is for transformers; use 'adam'")
        return tree

    matrices = optax.chain(
        optax.contrib.scale_by_muon(
            beta=0.95, mu_dtype=dtype, weight_dimension_numbers=axes
        ),
        optax.stateless(scaled),
    )
    rest = _adam(b1, b2, eps, dtype)
    return optax.partition({"muon": matrices, "adam": rest}, which)


def global_norm(tree) -> jax.Array:
    """Returns the square root of the sum of squares of all arrays, in float32.

    XLA's CPU backend would write all squares and add them one by one; those of several
    matrices are added here in one pass of vector operations, in a ninth of the time.
    """

    def by_matrix(x):
        matrices = x.reshape(-1, *x.shape[-2:])
        return jnp.sum(functools.reduce(operator.add, map(jnp.square, matrices)))

    def plain(x):
        return jnp.sum(jnp.square(x))

    def squares(x):
        x = x.astype(jnp.float32)
        if x.ndim < 3:
            return plain(x)
        return jax.lax.platform_dependent(x, cpu=by_matrix, default=plain)

    return jnp.sqrt(sum(map(squares, jax.tree.leaves(tree))))


def _clip(max_norm: float) -> optax.GradientTransformation:
    """Scales gradients down to a global norm, as `optax.clip_by_global_norm`.

    A factor, in place of its quotients, is fused with the update that follows.
    """

    def update(updates, _):
        factor = max_norm / jnp.maximum(global_norm(updates), max_norm)
        return jax.tree.map(lambda x: (x * factor).astype(x.dtype), updates)

    return optax.stateless(update)


OPTIMIZERS = {  # functions of b1, b2, eps and the dtype of the mean of gradients
    "adam": _adam,
    "adamw": _adam,
    "lion": lambda b1, b2, eps, dtype: optax.scale_by_lion(b1, b2, mu_dtype=dtype),
    # With momentum and without scaling by parameter size, as for scaled ViTs.
    "adafactor": lambda b1, b2, eps, dtype: optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.ema(b1, debias=False, accumulator_dtype=dtype),
    ),
    "muon": _muon,
    "sgd": lambda b1, b2, eps, dtype: optax.trace(b1, accumulator_dtype=dtype),
}


def make_optimizer(config, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns the Optax chain of an `optimizer` section of the config.

    'adam' adds weight decay to the gradient (L2), all others to the update, as PyTorch
    does.
    """
    mask = is_matrix if config.decay_matrices_only else None
    decay = optax.add_decayed_weights(config.weight_decay, mask)
    rule = OPTIMIZERS[config.name](
        config.b1, config.b2, config.eps, jnp.dtype(config.mu_dtype)
    )
    return optax.chain(
        _clip(config.clip_norm) if config.clip_norm else optax.identity(),
        *([decay, rule] if config.name == "adam" else [rule, decay]),
        optax.scale_by_learning_rate(schedule),
    )


def ema_update(average, new, decay: float, step=None):
    """Returns the updated moving average of parameters.

    Args:
      average, new: trees of arrays.
      decay: of the average, reached gradually: min(decay, (1 + step) / (10 + step)).
      step: number of updates before this one; if None, `decay` applies from the start.
    """
    if step is not None:
        step = jnp.asarray(step, jnp.float32)
        decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, n: decay * a + (1 - decay) * n, average, new)


def accumulate_gradients(grad_fn, state, batch, key, grad_accum_steps: int = 1):
    """Returns the gradients of a batch, computed over microbatches in sequence.

    Args:
      grad_fn: function of (state, batch, key) to (gradients, state, metrics), which
        may update the state's statistics, not its parameters.
      state: passed from microbatch to microbatch; each updates the codebook.
      batch: tree of arrays `[B, ...]`, B a multiple of `grad_accum_steps`.
      key: random key; each microbatch gets its own.
      grad_accum_steps: number of microbatches; with 1, `key` is used as it is.

    Returns:
      Mean gradients, the state after the last microbatch, and mean metrics.
    """
    if grad_accum_steps == 1:
        return grad_fn(state, batch, key)

    def split(x):  # strided, so that no rows move between devices
        return jnp.swapaxes(x.reshape(-1, grad_accum_steps, *x.shape[1:]), 0, 1)

    def one_microbatch(carry, inputs):
        total, state = carry
        grads, state, metrics = grad_fn(state, *inputs)
        return (jax.tree.map(jnp.add, total, grads), state), metrics

    inputs = (jax.tree.map(split, batch), jax.random.split(key, grad_accum_steps))
    shapes, _, _ = jax.eval_shape(grad_fn, state, *jax.tree.map(lambda x: x[0], inputs))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (total, state), metrics = jax.lax.scan(one_microbatch, (zeros, state), inputs)
    grads = jax.tree.map(lambda g: g / grad_accum_steps, total)
    return grads, state, jax.tree.map(lambda m: jnp.mean(m, axis=0), metrics)
