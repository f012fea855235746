# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Prints the time of each filter beside that of the same filter by sorting.

    python benchmarks/filters.py --batch=32 --num_codes=16384

Both are compiled, take turns, and keep the same codes; the table has medians. The last
line is a JSON object.
"""

from __future__ import annotations

import argparse
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import timing

from rq.sampling.filters import filter_logits

VALUES = {
    "top_k": np.int32(100),
    "top_p": np.float32(0.92),
    "min_p": np.float32(0.01),
    "typical_p": np.float32(0.9),
}


def top_k(logits, k):
    """Keeps codes of at least the logit at place k."""
    return logits >= jnp.take(_sorted(logits), k - 1, axis=-1)[..., None]


def top_p(logits, p):
    """Keeps codes until the running sum of sorted probabilities reaches p."""
    ranked = _sorted(logits)
    return logits >= _last(ranked, jax.nn.softmax(ranked), p)


def min_p(logits, p):
    """Keeps codes of at least a fraction of the highest probability."""
    return logits >= _sorted(logits)[..., :1] + jnp.log(p)


def typical_p(logits, p):
    """Keeps codes until the running sum, by distance to the entropy, reaches p."""
    log_probs = jax.nn.log_softmax(logits)
    probs = jnp.exp(log_probs)
    entropy = -jnp.sum(probs * log_probs, axis=-1, keepdims=True)
    distance = jnp.abs(-log_probs - entropy)
    nearest, mass = jax.lax.sort((distance, probs), num_keys=1)
    return distance <= _last(nearest, mass, p)


SORTED = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "typical_p": typical_p}


def _sorted(logits):
    return -jnp.sort(-logits, axis=-1)


def _last(scores, probs, p):
    """Returns the score with which the mass reaches p."""
    kept = jnp.sum(jnp.cumsum(probs, axis=-1) - probs < p, axis=-1, keepdims=True)
    return jnp.take_along_axis(scores, kept - 1, axis=-1)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--num_codes", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    shape = (given.batch, given.num_codes)
    logits = 3 * jax.random.normal(jax.random.key(0), shape)
    print(f"{jax.devices()[0].device_kind}, logits {list(shape)}, float32\n")
    print("| filter | ms | by sorting, ms | ratio | codes that differ |")
    print("|---|---|---|---|---|")
    results = {}
    for name, value in VALUES.items():
        ours = jax.jit(lambda x, v, name=name: filter_logits(x, **{name: v}) > -jnp.inf)
        by_sorting = jax.jit(SORTED[name])
        differing = int(jnp.sum(ours(logits, value) != by_sorting(logits, value)))
        seconds = timing.medians(
            {
                "ours": functools.partial(ours, logits, value),
                "sorted": functools.partial(by_sorting, logits, value),
            },
            given.rounds,
        )
        a, b = seconds.values()
        print(f"| {name} | {a * 1e3:.2f} | {b * 1e3:.2f} | {b / a:.1f} | {differing} |")
        results[name] = {"seconds": a, "over_sorted": b / a, "differing": differing}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
