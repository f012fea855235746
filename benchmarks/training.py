# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measures the train steps of both stages beside plain eager PyTorch.

    python benchmarks/training.py --stage=rqvae --stage=transformer --model=90M

Prints a table of step time, images a second, share of the device's peak and peak
memory; where rq's time goes, from a profile; and, as its last line, all of it as one
JSON object. Each library runs in a process of its own. They take turns, step by step,
and figures are medians. Without PyTorch installed, or with `--no-torch`, rq runs alone.
The PyTorch models are in `benchmarks/pytorch`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pathlib
import statistics
import subprocess
import sys

WORKER = pathlib.Path(__file__).parent / "train_steps.py"


class Worker:
    """A process of `train_steps.py`."""

    def __init__(self, library: str, **settings):
        command = json.dumps({"library": library, **settings})
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **command) -> dict:
        """Returns the answer to a command.

        Raises:
          RuntimeError: if the process ended instead.
        """
        print(json.dumps(command), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{WORKER.name} ended: its messages are above")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()


def measure(libraries, rounds: int, profiled: int, **settings) -> dict[str, dict]:
    """Returns figures of each library's train step.

    Args:
      libraries: of 'rq' and 'torch'.
      rounds: steps of each that are measured, after two that are not.
      profiled: steps of rq that are profiled; 0: none.
      **settings: see `train_steps.make_config`.
    """
    workers = {name: Worker(name, **settings) for name in libraries}
    for worker in workers.values():
        worker.ask(steps=2)
    seconds = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            seconds[name] += worker.ask(steps=1)["seconds"]
    found = {}
    for name, worker in workers.items():
        found[name] = {"step_seconds": statistics.median(seconds[name])}
        found[name] |= worker.ask(about=True)
        if name == "rq" and profiled:
            found[name] |= worker.ask(profile=profiled)
        worker.close()
    return found


def report(stage: str, batch_size: int, found: dict[str, dict]) -> dict[str, dict]:
    """Prints the figures of a stage, and returns them with those made from them."""
    for name, figures in found.items():
        figures["images_per_second"] = batch_size / figures["step_seconds"]
        rate = found["rq"]["flops"] / figures["step_seconds"]
        figures["fraction_of_peak"] = rate / found["rq"]["peak_flops"]
        print(
            f"| {stage} | {name} | {figures['step_seconds']:.3f} "
            f"| {figures['images_per_second']:.2f} "
            f"| {figures['fraction_of_peak']:.2f} "
            f"| {figures['peak_bytes'] / 2**30:.2f} |"
        )
    return found


def main() -> None:
    """Prints the tables and the JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    stages = ("rqvae", "transformer")
    parser.add_argument("--stage", action="append", choices=stages)
    parser.add_argument("--model", default="90M", choices=("90M", "small"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, default=0, help="0: 8 and 16 images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", type=int, default=1, help="steps; 0: off")
    parser.add_argument("--no-torch", action="store_true")
    given = parser.parse_args()
    has_torch = importlib.util.find_spec("torch") is not None
    libraries = ("rq",) if given.no_torch or not has_torch else ("rq", "torch")

    print("| stage | library | s a step | images/s | fraction of peak | peak GiB |")
    print("|---|---|---|---|---|---|")
    results = {}
    for stage in given.stage or stages:
        settings = dict(stage=stage, model=given.model, dtype=given.dtype)
        found = measure(
            libraries, given.rounds, given.profile, **settings, batch_size=given.batch
        )
        batch_size = given.batch or {"rqvae": 8, "transformer": 16}[stage]
        results[stage] = report(stage, batch_size, found)
    if given.profile:
        print("\n| stage | part of a step of rq | s |\n|---|---|---|")
    for stage, found in results.items():
        for part, seconds in found["rq"].get("parts", {}).items():
            print(f"| {stage} | {part} | {seconds:.3f} |")
        if "torch" in found:
            found["speed_over_torch"] = (
                found["torch"]["step_seconds"] / found["rq"]["step_seconds"]
            )
    print(json.dumps({**vars(given), "results": results}))


if __name__ == "__main__":
    main()
