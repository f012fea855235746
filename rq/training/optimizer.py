# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Optimizers, the learning rate schedule, parameter averages, gradient accumulation."""

from __future__ import annotations

import math
from collections.abc import Callable

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
    """The authors' schedule: linear warm-up, a plateau, half a cosine.

    As theirs it starts at 0 when there is a warm-up, and begins the cosine a step after
    the plateau; with a fractional warm-up the peak is what its last whole step reached.
    With `min_learning_rate = learning_rate` it is constant after the warm-up.

    Args:
      learning_rate: before the multiplier.
      steps: of the whole training.
      warmup_steps, buffer_steps: of warm-up and plateau; may be fractional.
      min_learning_rate: at the end.
      multiplier: of the peak, with a warm-up only (their 'linear' and 'sqrt' modes
        multiply it by the number of GPUs or its root).
      start_from_zero: otherwise from `learning_rate`.

    Returns:
      A function of the step, the first being 0.
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
        # (1 + cos(pi t)) / 2 as a sine of what is left: exact where it nears 0.
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
    """Tree of bools: the kernels of convolutions and matrix products.

    Goes by name, since biases and norms of scanned layers are stacked to two axes.
    """

    def check(path, _):  # the last name: boxes of axis names add a step of their own
        names = [str(step.key) for step in path if hasattr(step, "key")]
        return names[-1].endswith("kernel")

    return jax.tree_util.tree_map_with_path(check, params)


def _adam(b1: float, b2: float, eps: float, dtype) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1, b2, eps, mu_dtype=dtype)


def _muon(b1: float, b2: float, eps: float, dtype) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for the matrices of attention and MLP, Adam elsewhere.

    A matrix's momentum is made orthogonal, each layer of a scan by itself, and scaled
    to the root mean square of Adam's updates, 0.2 (Liu et al. 2025, eq. 4): one rate
    serves both. What is seen rarely moves as far as what is seen often.

    Raises:
      ValueError: at `init`, on parameters without an RQ-Transformer's stacks.
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
            raise ValueError("optimizer 'muon' is for transformers; take 'adam'")
        return tree

    matrices = optax.chain(
        optax.contrib.scale_by_muon(
            beta=0.95, mu_dtype=dtype, weight_dimension_numbers=axes
        ),
        optax.stateless(scaled),
    )
    rest = _adam(b1, b2, eps, dtype)
    return optax.partition({"muon": matrices, "adam": rest}, which)


OPTIMIZERS = {  # b1, b2, eps, dtype of the mean to what gradients are turned into
    "adam": _adam,
    "adamw": _adam,
    "lion": lambda b1, b2, eps, dtype: optax.scale_by_lion(b1, b2, mu_dtype=dtype),
    # With a mean of gradients and without the size of parameters, as in scaled ViTs.
    "adafactor": lambda b1, b2, eps, dtype: optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.ema(b1, debias=False, accumulator_dtype=dtype),
    ),
    "muon": _muon,
    "sgd": lambda b1, b2, eps, dtype: optax.trace(b1, accumulator_dtype=dtype),
}


def make_optimizer(config, schedule: optax.Schedule) -> optax.GradientTransformation:
    """An `optimizer` section of the config to an Optax chain.

    'adam' adds decay to the gradient (L2), all others to the update, as PyTorch's do.
    """
    mask = is_matrix if config.decay_matrices_only else None
    decay = optax.add_decayed_weights(config.weight_decay, mask)
    rule = OPTIMIZERS[config.name](
        config.b1, config.b2, config.eps, jnp.dtype(config.mu_dtype)
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm or jnp.inf),
        *([decay, rule] if config.name == "adam" else [rule, decay]),
        optax.scale_by_learning_rate(schedule),
    )


def ema_update(average, new, decay: float, step=None):
    """Moving average of parameters.

    Args:
      average, new: trees of arrays.
      decay: of the average, reached gradually: min(decay, (1 + step) / (10 + step)).
      step: updates before this one; `decay` at once where None.

    Returns:
      The new average, in float32 for floating-point leaves.
    """
    if step is not None:
        step = jnp.asarray(step, jnp.float32)
        decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, n: decay * a + (1 - decay) * n, average, new)


GradFn = Callable[..., tuple]


def accumulate(grad_fn: GradFn, state, batch, key, pieces: int = 1):
    """Gradients of a batch, taken in `pieces` that follow each other.

    Args:
      grad_fn: (state, batch, key) to (gradients, state, metrics); the state's
        parameters stay, its statistics may move.
      state: handed from piece to piece, so that each moves the codebook as a batch
        would.
      batch: tree of arrays with the batch in front, divisible by `pieces`.
      key: random key; each piece gets its own.
      pieces: 1 takes the batch at once.

    Returns:
      mean gradients, the state after the last piece, mean metrics.
    """
    if pieces == 1:
        return grad_fn(state, batch, key)

    def split(x):  # strided, so that every device keeps its part of the batch
        return jnp.swapaxes(x.reshape(-1, pieces, *x.shape[1:]), 0, 1)

    def one_piece(carry, inputs):
        total, state = carry
        grads, state, metrics = grad_fn(state, *inputs)
        return (jax.tree.map(jnp.add, total, grads), state), metrics

    inputs = (jax.tree.map(split, batch), jax.random.split(key, pieces))
    shapes, _, _ = jax.eval_shape(grad_fn, state, *jax.tree.map(lambda x: x[0], inputs))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (total, state), metrics = jax.lax.scan(one_piece, (zeros, state), inputs)
    grads = jax.tree.map(lambda g: g / pieces, total)
    return grads, state, jax.tree.map(lambda m: jnp.mean(m, axis=0), metrics)
