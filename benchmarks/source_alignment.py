# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measures how soon a transformer finds the codes of its source image.

    python benchmarks/source_alignment.py

A small RQ-Transformer learns to copy: source and target have the same random codes, so
that nothing but the source at the same position helps. Twice: as it is, where each
input of the body has the source's token at the position that it predicts; and with the
source's tokens before the condition alone. The loss is in nats per code, log(32) = 3.47
by chance.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time

import jax
import jax.numpy as jnp
import optax

from rq.models import RQTransformer, StackConfig
from rq.parallel import sharding

GRID, CODES, CHANNELS = 8, 32, 16
BATCH = 16


class PrefixAlone(RQTransformer):
    """Reads the source's tokens before the condition, and nowhere else."""

    def source_hints(self, cond, batch, codebook):
        """Returns None."""
        return None


def train(kind, steps: int, seed: int) -> list[float]:
    """Returns the loss of every step of a kind of transformer."""
    model = kind(
        code_shape=(GRID, GRID, 1),
        num_codes=(CODES,),
        input_dim=CHANNELS,
        width=96,
        body=StackConfig(layers=3, heads=4, residual_dropout=0.0),
        head=StackConfig(layers=1, heads=4, residual_dropout=0.0),
        source_shape=(GRID, GRID, 1),
        source_dim=CHANNELS,
    )
    key = jax.random.key(seed)
    codebook = jax.random.normal(key, (CODES, CHANNELS))
    codes = jnp.zeros((1, GRID, GRID, 1), jnp.int32)
    params = sharding.unbox(model.init(key, codes, None, codebook))["params"]
    schedule = optax.warmup_cosine_decay_schedule(0, 1e-3, 50, steps)
    clip = optax.clip_by_global_norm(1.0)
    optimizer = optax.chain(clip, optax.adamw(schedule, b2=0.95, weight_decay=1e-4))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, key):
        source = jax.random.randint(key, (BATCH, GRID * GRID), 0, CODES)
        cond = jnp.concatenate([source, jnp.zeros((BATCH, 1), jnp.int32)], axis=1)
        codes = source.reshape(BATCH, GRID, GRID, 1)

        def loss(params):
            logits = model.apply({"params": params}, codes, cond, codebook)
            cross = optax.softmax_cross_entropy_with_integer_labels(logits, codes)
            return jnp.mean(cross)

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    losses = []
    for number in range(steps):
        params, state, value = step(params, state, jax.random.fold_in(key, number))
        losses.append(value)
    return [float(value) for value in losses]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    results = {}
    kinds = {"at its position": RQTransformer, "before the condition": PrefixAlone}
    for name, kind in kinds.items():
        start = time.perf_counter()
        losses = train(kind, options.steps, options.seed)
        marks = range(99, options.steps, 100)
        results[name] = {
            "loss": {i + 1: round(sum(losses[i - 19 : i + 1]) / 20, 4) for i in marks},
            "seconds": round(time.perf_counter() - start, 1),
        }
        print(name, results[name], flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
