# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""What training the paper's models costs, counted, not measured: a Markdown table.

    python benchmarks/training_cost.py --chips=64 --peak=197 --stage1=0.25 --stage2=0.40

Stage 1: operations of the whole step, both networks and LPIPS on VGG16, as XLA counts
them before it optimises. Stage 2: matrix products by formula, two operations for each
weight and place (layers of the body at T positions, of the head at T D, 12 M^2 weights
each; logits M K at T D) and for attention scores and sums; times three for the
gradients, times four where blocks are recomputed. Hours are these operations at a
share of the chips' peak (TFLOP/s), which is an assumption.
"""

from __future__ import annotations

import argparse
import importlib.util
import pathlib

import jax
import jax.numpy as jnp

from rq import sharding
from rq.models.lpips import PerceptualDistance
from rq.stages import RQVAEStage

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
MODELS = (
    ("imagenet", ("480M", "821M", "1.4B", "3.8B")),
    ("ffhq", ("",)),
    ("lsun", ("church", "cat", "bedroom")),
    ("cc3m", ("",)),
)


def load(file: str, variant: str):
    """The config of a file's variant."""
    spec = importlib.util.spec_from_file_location(file, CONFIGS / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


def stage_1(config) -> float:
    """Operations an image."""
    with config.unlocked():
        config = config.copy_and_resolve_references()
    config.rqvae.batch_size = 1
    side, channels = config.data.resolution, config.data.channels
    image = jnp.zeros((1, side, side, 3))
    distance = PerceptualDistance()
    boxed = jax.eval_shape(distance.init, jax.random.key(0), image, image)["params"]
    params = jax.tree.map(lambda x: jnp.zeros(x.shape), sharding.unbox(boxed))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    stage = RQVAEStage(config, mesh, lambda: iter([]), (distance, params))
    state = sharding.abstract_state(jax.eval_shape(stage.init, jax.random.key(0)), mesh)
    batch = {"image": jax.ShapeDtypeStruct((1, side, side, channels), jnp.uint8)}
    with sharding.context(mesh):
        return jax.jit(stage.train_step).lower(state, batch).cost_analysis()["flops"]


def stage_2(config) -> float:
    """Operations an image."""
    part, model = config.transformer, config.transformer.model
    height, width, depth = config.rqvae.model.code_shape
    places, m = height * width, model.width
    text = part.text.length if "text" in part.condition else 1
    length = places + text - 1
    body = model.body.layers * length * (12 * m**2 + 2 * m * length)
    head = model.head.layers * places * depth * (12 * m**2 + 2 * m * depth)
    logits = m * max(config.rqvae.model.num_codes) * places * depth
    return 2 * (body + head + logits) * (4 if model.remat == "full" else 3)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", type=int, default=64)
    parser.add_argument("--peak", type=float, default=197.0, help="TFLOP/s of a chip")
    parser.add_argument("--stage1", type=float, default=0.25, help="share of the peak")
    parser.add_argument("--stage2", type=float, default=0.40, help="share of the peak")
    given = parser.parse_args()
    print("| model | stage 1: TFLOP/image, in all, hours | stage 2: the same |")
    print("|---|---|---|")
    for file, variants in MODELS:
        first = stage_1(load(file, variants[0]))
        for variant in variants:
            config = load(file, variant)
            cells = [":".join(filter(None, (file, variant)))]
            for part, operations, share in (
                (config.rqvae, first, given.stage1),
                (config.transformer, stage_2(config), given.stage2),
            ):
                total = operations * part.batch_size * part.steps
                rate = given.chips * given.peak * 1e12 * share
                cells.append(
                    f"{operations / 1e12:.2f}, {total:.1e}, {total / rate / 3600:.1f}"
                )
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
