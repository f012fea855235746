# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measures what it costs, and what it saves, to train the head at fewer positions.

    python benchmarks/head_fraction.py --workdir=runs/digits --steps=300

For several values of `transformer.loss.head_fraction`:

1. Of a train step of the run's model and of a model of 90 million parameters (8 x 8 x 4
   codes of 2,048, width 512, 24 + 4 layers, batch 8): seconds, the median of a few
   steps; temporary memory, as the compiler reports it; FLOPs, counted.
2. The cross entropy on the evaluation split after a short training of stage 2 on the
   run's codes, each with a whole learning-rate schedule: for `--steps` steps, and for
   as many as take the time of `--steps` steps at all positions, by the seconds of 1.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import jax
import numpy as np

from rq import flops
from rq.config import default, validate
from rq.data import loader
from rq.experiment import Experiment
from rq.models.codebook import init_codebook
from rq.parallel import sharding
from rq.training import loop
from rq.training.stages import TransformerStage

LARGE = {  # 90 million parameters
    "rqvae.model.code_shape": (8, 8, 4),
    "rqvae.model.num_codes": (2048,),
    "transformer.batch_size": 8,
    "transformer.model.width": 512,
    "transformer.model.body.layers": 24,
    "transformer.model.body.heads": 8,
    "transformer.model.head.layers": 4,
    "transformer.model.head.heads": 8,
}
TIMED = 5  # steps, after one that warms up


def changed(config, **loss):
    """Returns a copy of a config with other fields of stage 2's loss."""
    with config.unlocked():
        config = config.copy_and_resolve_references()
    config.transformer.loss.update(loss)
    return config


def random_batch(config, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns a batch of random codes, latents, labels and texts."""
    rng, size = np.random.default_rng(seed), config.transformer.batch_size
    shape, codes = config.rqvae.model.code_shape, config.rqvae.model.num_codes[0]
    latents = (size, *shape[:2], config.rqvae.model.embed_dim)
    text = config.transformer.text
    return {
        "codes": rng.integers(0, codes, (size, *shape), np.int32),
        "features": rng.standard_normal(latents, np.float32),
        "label": rng.integers(0, max(config.data.num_classes, 1), size, np.int32),
        "text": rng.integers(0, text.vocab_size, (size, text.length), np.int32),
    }


def start(stage, seed: int, batch):
    """Returns a new state, and the compiled step with its FLOPs."""
    boxed = jax.eval_shape(stage.init, jax.random.key(0))
    shardings = sharding.state_shardings(boxed, stage.mesh)
    init = jax.jit(lambda key: sharding.unbox(stage.init(key)), out_shardings=shardings)
    state = init(jax.random.key(seed))
    step = loop.compiled(stage.train_step, shardings, stage.mesh)
    with sharding.context(stage.mesh):
        traced = step.trace(state, sharding.shard_batch(batch, stage.mesh))
        return state, traced.lower().compile(), flops.program_flops(traced.jaxpr)


def cost(config, variables, mesh, fractions) -> dict[float, dict[str, float]]:
    """Returns seconds, temporary bytes and FLOPs of a train step by fraction."""
    batch, running = random_batch(config), {}
    for fraction in fractions:
        stage = TransformerStage(
            changed(config, head_fraction=fraction), mesh, lambda: [], variables
        )
        state, step, number = start(stage, 0, batch)
        memory = step.memory_analysis().temp_size_in_bytes
        running[fraction] = [state, step, {"flops": number, "bytes": memory}, []]
    for _ in range(TIMED + 1):  # in turns: the machine may be busy now and then
        for fraction, (state, step, _, times) in running.items():
            begin = time.perf_counter()
            running[fraction][0], metrics = step(state, batch)
            jax.block_until_ready(metrics)
            times.append(time.perf_counter() - begin)
    return {
        fraction: {"seconds": statistics.median(times[1:])} | found
        for fraction, (_, _, found, times) in running.items()
    }


def print_costs(model: str, found: dict[float, dict[str, float]]) -> None:
    """Prints a table of what `cost` returned."""
    print("\n| model | fraction | step | temporary memory | TFLOP |")
    print("|---|---|---|---|---|")
    for fraction, x in found.items():
        print(
            f"| {model} | {fraction} | {x['seconds']:.3f} s "
            f"| {x['bytes'] / 2**20:,.0f} MiB | {x['flops'] / 1e12:.3f} |",
            flush=True,
        )


def train(experiment, fraction: float, steps: int, seed: int) -> float:
    """Trains stage 2; returns the cross entropy on the evaluation split, in nats."""
    config = changed(experiment.config, head_fraction=fraction)
    config.seed, config.transformer.steps = seed, steps
    validate(config)
    run = Experiment(experiment.path, experiment.mesh, config=config)
    stage = run.transformer_stage()
    data = loader.shuffled(
        run.code_source(config.data.train_split),
        config.data,
        batch_size=stage.batch_size,
        seed=seed,
        tokens=run.tokens(config.transformer.text.dropout),
    )
    batch = next(data)
    state, step, _ = start(stage, seed, batch)
    for _ in range(steps):
        with sharding.context(stage.mesh):
            state, _ = step(state, sharding.shard_batch(batch, stage.mesh))
        batch = next(data)
    return stage.evaluate(state)["cross_entropy"]


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="run with a trained stage 1")
    parser.add_argument("--fractions", default="1,0.5,0.25", help="1 first")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--large", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    fractions = [float(fraction) for fraction in given.fractions.split(",")]
    experiment = Experiment(given.workdir)
    mesh = experiment.mesh

    own = cost(experiment.config, experiment.rqvae_variables, mesh, fractions)
    print_costs("the run's", own)
    print("\n| fraction | steps | cross entropy, nats per code |\n|---|---|---|")
    seconds = {fraction: x["seconds"] for fraction, x in own.items()}
    quality = []
    for fraction in fractions:
        longer = round(given.steps * seconds[1.0] / seconds[fraction])
        for steps in sorted({given.steps, longer}):
            found = [train(experiment, fraction, steps, s) for s in range(given.seeds)]
            row = {"fraction": fraction, "steps": steps, "cross_entropy": found}
            quality.append(row)
            text = ", ".join(f"{x:.4f}" for x in found)
            print(
                f"| {fraction} | {steps} | {np.mean(found):.4f} ({text}) |", flush=True
            )
    costs = {"run": own}
    if given.large:
        config = default()
        config.update_from_flattened_dict(LARGE)
        shape = (*config.rqvae.model.num_codes, config.rqvae.model.embed_dim)
        codebook = {"state": init_codebook(jax.random.key(0), shape)}
        costs["90M"] = cost(config, {"codebook": codebook}, mesh, fractions)
        print_costs("90M parameters", costs["90M"])
    print(json.dumps({"cost": costs, "quality": quality}))


if __name__ == "__main__":
    main()
