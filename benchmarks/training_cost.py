# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Prints a Markdown table of what training the paper's models costs, without training.

    python benchmarks/training_cost.py --chips=64 --peak=197 --stage1=0.25 --stage2=0.40

Counts the FLOPs of all matrix products and convolutions of the real train steps,
recomputation included (`rq.flops`). Hours assume that the chips reach a fraction of
their peak (TFLOP/s), which is not measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import pathlib

import jax

from rq import flops
from rq.aot import programs
from rq.parallel import sharding

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
MODELS = (
    ("imagenet", ("480M", "821M", "1.4B", "3.8B")),
    ("ffhq", ("",)),
    ("lsun", ("church", "cat", "bedroom")),
    ("cc3m", ("",)),
)


def load(file: str, variant: str):
    """Returns the config of a file's variant."""
    spec = importlib.util.spec_from_file_location(file, CONFIGS / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


def flops_per_image(config, stage: str) -> float:
    """Returns the FLOPs of a train step per image."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    traced = programs.train_step(config, stage, mesh)
    return flops.program_flops(traced.jaxpr) / config[stage].batch_size


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chips", type=int, default=64)
    parser.add_argument("--peak", type=float, default=197.0, help="TFLOP/s per chip")
    parser.add_argument("--stage1", type=float, default=0.25, help="fraction of peak")
    parser.add_argument("--stage2", type=float, default=0.40, help="fraction of peak")
    given = parser.parse_args()
    fractions = {"rqvae": given.stage1, "transformer": given.stage2}
    print("| model | stage 1: TFLOP per image, total FLOP, hours | stage 2: the same |")
    print("|---|---|---|")
    for file, variants in MODELS:
        for variant in variants:
            config = load(file, variant)
            cells = [":".join(filter(None, (file, variant)))]
            for stage, fraction in fractions.items():
                each, section = flops_per_image(config, stage), config[stage]
                total = each * section.batch_size * section.steps
                hours = total / (given.chips * given.peak * 1e12 * fraction) / 3600
                cells.append(f"{each / 1e12:.2f}, {total:.1e}, {hours:.1f}")
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
