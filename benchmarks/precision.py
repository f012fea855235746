# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Prints what a run's transformer loses with weights of fewer bits.

    python benchmarks/precision.py runs/digits runs/emoji

For each precision of `rq sample --dtype`: the cross entropy of the evaluation split's
codes in nats, how often the most probable code (given all codes before it) is that of
float32, and the size of the weights. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib

import jax
import numpy as np

from rq.experiment import Experiment
from rq.models.projection import PRECISIONS
from rq.parallel import sharding
from rq.sampling import conditions


@functools.partial(jax.jit, static_argnums=0)
def _most_probable(model, variables, codes, cond):
    params, codebook = variables["params"], variables["codebook"]["state"].embedding
    return model.apply({"params": params}, codes, cond, codebook).argmax(axis=-1)


def most_probable(experiment: Experiment) -> np.ndarray:
    """Returns the most probable codes `[N, H, W, D]` of the evaluation split."""
    stage, found = experiment.transformer, []
    variables = experiment.transformer_state.model_variables()
    for batch in stage.eval_batches():
        batch = sharding.shard_batch(batch, experiment.mesh)
        batch = stage.encoded({"rqvae": experiment.rqvae_variables}, batch)
        cond = conditions.make(experiment.config, batch)
        codes = _most_probable(stage.model, variables, batch["codes"], cond)
        found.append(np.asarray(codes)[np.asarray(batch["mask"])])
    return np.concatenate(found)


def measure(run: str) -> list[dict]:
    """Returns the figures of each precision."""
    expected, results = None, []
    for precision in PRECISIONS:
        experiment = Experiment(run, dtype=precision)
        state = experiment.transformer_state
        codes = most_probable(experiment)
        expected = codes if expected is None else expected
        weights = sum(x.nbytes for x in jax.tree.leaves(state.params))
        results.append(
            {
                "run": pathlib.Path(run).name,
                "precision": precision,
                "cross_entropy": experiment.transformer.evaluate(state)[
                    "cross_entropy"
                ],
                "same_codes": float((codes == expected).mean()),
                "mebibytes": weights / 2**20,
            }
        )
    return results


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="trained run directories")
    given = parser.parse_args()
    print("| run | precision | cross entropy | same most probable codes | MiB |")
    print("|---|---|---|---|---|")
    results = []
    for run in given.runs:
        for found in measure(run):
            print(
                f"| {found['run']} | {found['precision']} | "
                f"{found['cross_entropy']:.4f} | {found['same_codes']:.2%} | "
                f"{found['mebibytes']:.1f} |",
                flush=True,
            )
            results.append(found)
    print(json.dumps({"results": results}))


if __name__ == "__main__":
    main()
