# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Compares first codebooks and codebook sizes at equal bits, and resized codebooks.

    python benchmarks/codebooks.py --workdir=runs/codebooks

Trains RQ-VAEs on digits and emoji, each for the same number of steps on the same
images: random first codebooks (the default) against k-means, with and without restarts;
one codebook for all depths against one for each, also of the sizes that `rq
suggest-codebook` makes of the first run's entropy, which have equal bits. And RQ-VAEs
that start from the digits model that comes with rq, with fewer or more codes. Writes a
table to docs/results.md. Finished runs are kept, interrupted ones resume. The last line
is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import re
import time

import document
import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "docs/results.md"
FIXED = "random, shared"  # the setting of the paper and the released models
KMEANS = {"rqvae.codebook_init": "kmeans"}
CALM = {"rqvae.model.restart_codes": False}
OWN = {"rqvae.model.shared_codebook": False}
SUGGESTED = OWN | {"transformer.model.shared_classifier": False, "sizes": True}
ARMS = {
    FIXED: {},
    "k-means, shared": KMEANS,
    "k-means, shared, no restarts": KMEANS | CALM,
    "random, one for each depth": OWN,
    "random, suggested sizes": SUGGESTED,
    "k-means, suggested sizes, no restarts": SUGGESTED | KMEANS | CALM,
}
GIVEN = {"init_from": "digits", "init_stages": ("rqvae",)}
STARTS = {  # of the digits alone: number of codes, changes, fraction of the steps
    "128 codes, from the model of 256, one step": (128, GIVEN, 0),
    "128 codes, from the model of 256": (128, GIVEN, 0.25),
    "128 codes, afresh": (128, {}, 0.25),
    "512 codes, from the model of 256, one step": (512, GIVEN, 0),
    "512 codes, from the model of 256": (512, GIVEN, 0.25),
    "512 codes, afresh": (512, {}, 0.25),
}
SETS = {  # batch size and field changes of each data set
    "digits": {},
    "emoji": {
        "data.resolution": 32,
        "data.augment": "center",
        "rqvae.batch_size": 16,
        "rqvae.model.ch_mult": (1, 1, 2),
        "rqvae.loss.perceptual": "none",
        "rqvae.adversarial.weight": 0.0,
    },
}


def folder_name(name: str) -> str:
    """Returns the name of a run's folder."""
    return re.sub(r"\W+", "_", name).strip("_").lower()


def make_config(data: str, steps: int, seed: int, changes):
    """Returns the config of a run."""
    from absl import flags

    from rq.config.command_line import parse_with_config
    from rq.config.config_file import find

    values = flags.FlagValues()
    variant = ":nogan" if data == "emoji" else ""
    parse_with_config(values, ["rq", f"--config={find(data)}{variant}"])
    config = values["config"].value
    same = {
        "seed": seed,
        "stages": ("rqvae",),
        "rqvae.steps": steps,
        "rqvae.optimizer.warmup_steps": min(50, steps),
        "checkpoint.every": 1000,
        "checkpoint.keep": 1,
        "log.eval_every": 10_000,
    }
    config.update_from_flattened_dict(SETS[data] | same | changes)
    return config


def train(config, path: pathlib.Path) -> dict:
    """Trains and measures one run, unless it is finished; returns its result."""
    from rq.cli.train import run_stages
    from rq.config import validate
    from rq.parallel import atomic_files

    file = path / "result.json"
    if file.exists():
        result = json.loads(file.read_text())
        if result["steps"] != config.rqvae.steps:
            raise SystemExit(
                f"{path} has {result['steps']} steps: name a new --workdir"
            )
        return result
    validate(config)
    start = time.monotonic()
    run_stages(config, path)
    metrics = json.loads((path / "samples/evaluation.json").read_text())
    model = config.rqvae.model
    rows, columns, depth = model.code_shape
    sizes = tuple(model.num_codes) * (depth // len(model.num_codes))
    entropy = sum(metrics[f"rqvae/entropy_bits/depth_{d + 1}"] for d in range(depth))
    result = {
        "bits": rows * columns * sum(map(math.log2, sizes)),
        "entropy": rows * columns * entropy,
        "psnr": metrics[f"rqvae/psnr/depth_{depth}"],
        "used": metrics["rqvae/usage/all"],
        "sizes": sizes,
        "steps": config.rqvae.steps,
        "seconds": round(time.monotonic() - start, 1),
    }
    atomic_files.write_json(file, result)
    return result


def suggested(path: pathlib.Path) -> tuple[int, ...]:
    """Returns the sizes of equal bits that a run's codes suggest."""
    from rq.evaluation import codebook_report
    from rq.experiment import Experiment

    file = path / "suggestion.json"
    if not file.exists():
        file.write_text(json.dumps(codebook_report.measure(Experiment(path), "train")))
    return tuple(json.loads(file.read_text())["equal_bits"]["num_codes"])


def run_all(workdir: pathlib.Path, steps: dict[str, int], seeds: dict[str, int]):
    """Returns the results: by data set and arm a list over seeds; and of `STARTS`."""
    results: dict[str, dict[str, list]] = {}
    for data, number in steps.items():
        for seed in range(seeds[data]):
            for name, arm in ARMS.items():
                changes = {k: v for k, v in arm.items() if k != "sizes"}
                if "sizes" in arm:
                    first = workdir / data / folder_name(FIXED) / "0"
                    changes["rqvae.model.num_codes"] = suggested(first)
                config = make_config(data, number, seed, changes)
                path = workdir / data / folder_name(name) / str(seed)
                result = train(config, path)
                results.setdefault(data, {}).setdefault(name, []).append(result)
                print(data, name, seed, json.dumps(result), flush=True)
    for name, (codes, changes, fraction) in STARTS.items():
        changes = changes | {"rqvae.model.num_codes": (codes,)}
        number = max(1, round(fraction * steps["digits"]))
        config = make_config("digits", number, 0, changes)
        path = workdir / "starts" / folder_name(name)
        results.setdefault("starts", {})[name] = [train(config, path)]
        print(name, json.dumps(results["starts"][name]), flush=True)
    return results


def mean(runs, name: str) -> float:
    """Returns the mean of a number over runs."""
    return float(np.mean([run[name] for run in runs]))


def tables(results) -> str:
    """Returns a Markdown table for each data set, and one of the given codebooks."""
    parts = []
    for data, arms in results.items():
        runs = next(iter(arms.values()))
        seeds = f", {len(runs)} seeds" if len(runs) > 1 else ", one seed"
        steps = f"{runs[0]['steps']} steps{seeds}"
        what = f"{data}, {steps}" if data in SETS else "digits, another number of codes"
        lines = [
            f"| {what} | bits | bits if coded by entropy | PSNR (range) | codes used |",
            "|---|---|---|---|---|",
        ]
        for name, runs in arms.items():
            values = [run["psnr"] for run in runs]
            spread = f" ({min(values):.2f}–{max(values):.2f})" if len(runs) > 1 else ""
            sizes = runs[0]["sizes"]
            what = f" ({', '.join(map(str, sizes))})" if len(set(sizes)) > 1 else ""
            steps = "" if data in SETS else f", {runs[0]['steps']} steps"
            steps = steps.replace(", 1 steps", "")
            lines.append(
                f"| {name}{what}{steps} | {mean(runs, 'bits'):,.0f} | "
                f"{mean(runs, 'entropy'):,.0f} | {np.mean(values):.2f} dB{spread} | "
                f"{100 * mean(runs, 'used'):.0f} % |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main() -> None:
    """Trains all runs and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--digits_steps", type=int, default=400)
    parser.add_argument("--emoji_steps", type=int, default=400)
    parser.add_argument("--digits_seeds", type=int, default=3)
    parser.add_argument("--emoji_seeds", type=int, default=3)
    given = parser.parse_args()

    from rq.cli import compilation_cache, log_output

    log_output.start(debug=False)
    compilation_cache.enable()
    steps = {"digits": given.digits_steps, "emoji": given.emoji_steps}
    seeds = {"digits": given.digits_seeds, "emoji": given.emoji_seeds}
    results = run_all(given.workdir.absolute(), steps, seeds)
    document.insert(RESULTS, "codebooks", tables(results))
    print(tables(results))
    found = {
        data: {name: round(mean(runs, "psnr"), 3) for name, runs in arms.items()}
        for data, arms in results.items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
