# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measures time and memory of the metrics, given features.

    python benchmarks/metrics.py                    # two sets of 50,000 x 2,048
    python benchmarks/metrics.py --number=5000

Each metric runs on random features in a separate process. Its memory is the peak of
that process, features included, minus that of an empty process. The last line is one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time

import numpy as np

METRICS = ("nothing", "FID", "KID", "IS", "precision and recall, density and coverage")


def features(number: int, width: int, seed: int) -> np.ndarray:
    """Returns correlated, nonnegative features like Inception's, float32 `[N, F]`."""
    rng = np.random.default_rng(seed)
    few = rng.standard_normal((number, 64), np.float32)
    found = few @ rng.standard_normal((64, width), np.float32) / 8
    found += rng.standard_normal((number, width), np.float32) / 4 + seed / 100
    return np.maximum(found, 0, out=found)


def measure(name: str, number: int, width: int, answers) -> None:
    """Runs one metric and puts (value, seconds, peak bytes) into a queue."""
    from rq.metrics import distances, manifold
    from rq.metrics import moments as statistics

    value = None
    if name == "IS":
        logits = features(number, 1008, 1)
        start = time.perf_counter()
        value = distances.inception_score(logits).mean
    elif name == "nothing":
        start = time.perf_counter()
    else:
        made, real = features(number, width, 1), features(number, width, 2)
        start = time.perf_counter()
        if name == "FID":
            a, b = (_streamed(statistics, x) for x in (made, real))
            value = distances.frechet_distance(
                a.mean, a.covariance, b.mean, b.covariance
            ).value
        elif name == "KID":
            size = min(distances.SUBSET_SIZE, number)
            value = distances.kernel_distance(made, real, size=size).mean
        else:
            value = manifold.manifold(made, real)._asdict()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    answers.put((value, seconds, peak))


def _streamed(statistics, found):
    moments = statistics.of(found[:500])
    for first in range(500, len(found), 500):
        moments = statistics.merge(moments, statistics.of(found[first : first + 500]))
    return moments


def main() -> None:
    """Measures all metrics and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--number", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=2048)
    given = parser.parse_args()
    context, found = multiprocessing.get_context("spawn"), {}
    for name in METRICS:
        answers = context.Queue()
        process = context.Process(
            target=measure, args=(name, given.number, given.width, answers)
        )
        process.start()
        value, seconds, peak = answers.get()
        process.join()
        found[name] = {"value": value, "seconds": seconds, "peak": peak}
        above = (peak - found["nothing"]["peak"]) / 2**30
        if name != "nothing":
            print(f"{name}: {seconds:.1f} s, {above:.2f} GiB", flush=True)
    print(json.dumps(found | {"number": given.number, "width": given.width}))


if __name__ == "__main__":
    main()
