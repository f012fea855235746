# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measures how long commands take to start, and what their imports take.

    python benchmarks/startup.py
    python benchmarks/startup.py --models=tiny --repeats=1

Seconds from the start of a process to its first samples (`rq sample RUN
--num_samples=1`) and to its first train step of each stage, without compiled programs
(cold: an empty folder) and with those of an earlier process (warm); medians. Then the
modules that commands import, by package, in milliseconds (`python -X importtime`). The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
MODELS = {"tiny": "configs/digits.py:tiny", "digits": "configs/digits.py"}
# What is imported: name -> module.
IMPORTS = {
    "import rq": "rq",
    "rq --help": "rq.cli.program",
    "rq sample": "rq.cli.sample",
    "rq train": "rq.cli.train",
    "rq train, writing metrics": "rq.training.metric_writer",
}
SHOWN = 8  # packages of each
# Lines that a command prints: when it has imported its modules and found its devices,
# when it has written samples, and when it writes the checkpoint of the first step.
DEVICES = re.compile(r"devices: \d+ x ")
SAMPLED = re.compile(r"wrote ")
STEPPED = re.compile(r": writing .*/(rqvae|transformer)/1$")


def environment(cache: pathlib.Path) -> dict[str, str]:
    """Returns this process's environment, with a folder for compiled programs."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONPATH": path}


def seconds_until(
    command: list[str], last: re.Pattern, cache, to_end: bool = False
) -> dict[str, float]:
    """Runs a command until it prints a line; returns the seconds to that line.

    Also those until it has its devices. The process is then killed, unless it is to run
    to its end.
    """
    found, printed, start = {}, [], time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "rq.main", *command],
        cwd=ROOT,
        env=environment(cache),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout:
            printed.append(line)
            if DEVICES.search(line):
                found["devices"] = time.perf_counter() - start
            if "first" not in found and last.search(line):
                found["first"] = time.perf_counter() - start
                if not to_end:
                    process.kill()
    if "first" not in found:
        raise SystemExit(f"{' '.join(command)} has failed:\n{''.join(printed)}")
    return found


def train(config: str, folder: pathlib.Path, *stages: str) -> list[str]:
    """Returns the command that trains stages for two steps on data in a folder."""
    flags = [f"--config={config}", f"--config.data.dir={folder / 'data'}"]
    flags += [f"--config.stages={stage}" for stage in stages]
    for section in ("rqvae", "transformer"):
        flags.append(f"--config.{section}.steps=2")
        flags.append(f"--config.{section}.optimizer.warmup_steps=0")
    return [*flags, "--config.checkpoint.every=1"]


def measure(config: str, repeats: int) -> dict[str, dict[str, float]]:
    """Returns the seconds of each case, cold and warm.

    The last run of each case goes on to its end, and leaves what the next case needs.
    """
    from rq.data import digits

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        with contextlib.redirect_stdout(sys.stderr):  # tables alone go to the first
            digits.prepare(str(folder / "data"))
        workdir, cache = folder / "run", folder / "cache"
        at = f"--workdir={workdir}"
        encoded = [*train(config, folder, "rqvae", "codes"), at]
        trained = [*train(config, folder, "transformer"), at]
        sampled = ["--mode=sample", "--num_samples=1", at]
        cases = {  # the command, the line that it prints, and what is made anew
            "first step of stage 1": (encoded, STEPPED, workdir),
            "first step of stage 2": (trained, STEPPED, workdir / "transformer"),
            "first sample": (sampled, SAMPLED, None),
        }
        results = {}
        for case, (command, line, made) in cases.items():
            times = collections.defaultdict(list)
            for k in range(repeats):
                shutil.rmtree(cache, ignore_errors=True)
                for state in ("cold", "warm"):
                    if made:
                        shutil.rmtree(made, ignore_errors=True)
                    to_end = k == repeats - 1 and state == "warm"
                    found = seconds_until(command, line, cache, to_end)
                    times["imports and devices"].append(found["devices"])
                    times[state].append(found["first"])
            results[case] = {k: statistics.median(v) for k, v in times.items()}
        return results


def imports(module: str, repeats: int) -> dict[str, float]:
    """Returns milliseconds by package, without those of the modules that it imports.

    Of several runs it returns the fastest. 'total' is the sum.
    """
    runs = []
    for _ in range(repeats):
        output = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", f"import {module}"],
            cwd=ROOT,
            env=environment(pathlib.Path()),
            check=True,
            capture_output=True,
            text=True,
        ).stderr
        found = collections.Counter()
        for own, name in re.findall(
            r"^import time: +(\d+) \| +\d+ \| +(\S+)$", output, re.MULTILINE
        ):
            found[name.partition(".")[0]] += int(own) / 1000
        runs.append(found)
    best = min(runs, key=lambda found: found.total())
    return {"total": best.total()} | dict(best.most_common())


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", default=",".join(MODELS), help="separated by commas"
    )
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()

    print("| imported | ms | of which |\n|---|---|---|")
    by_package = {}
    for name, module in IMPORTS.items():
        found = by_package[name] = imports(module, given.repeats)
        largest = list(found.items())[1 : SHOWN + 1]
        text = ", ".join(f"{package} {ms:.0f}" for package, ms in largest)
        print(f"| {name} | {found['total']:.0f} | {text} |", flush=True)

    print("\n| model | to | cold | warm | of which imports and devices |")
    print("|---|---|---|---|---|")
    times = {}
    for model in given.models.split(","):
        times[model] = measure(MODELS[model], given.repeats)
        for case, found in times[model].items():
            cells = (found[key] for key in ("cold", "warm", "imports and devices"))
            row = " | ".join(f"{seconds:.1f} s" for seconds in cells)
            print(f"| {model} | {case} | {row} |", flush=True)
    print(json.dumps({"seconds": times, "import_ms": by_package}))


if __name__ == "__main__":
    main()
