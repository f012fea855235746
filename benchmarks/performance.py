# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Runs the benchmarks of speed and writes their tables into docs/performance.md.

    python -m benchmarks.performance --quick

`--quick` takes fewer rounds and sizes: 16.5 minutes on two cores of 134 GFLOP/s. The
comparisons need PyTorch and FAISS (`pip install torch faiss-cpu`); without them their
columns stay empty. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import time

from benchmarks import document

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENT = ROOT / "docs/performance.md"
# Name of the table, which is that of the script, and its flags: in full, and quick.
PARTS = {
    "sampling": (("--rounds=5",), ("--batch_sizes=1,8,32", "--rounds=1")),
    "training": (("--rounds=5",), ("--rounds=2",)),
    "filters": ((), ("--rounds=5",)),
    "nearest_code": ((), ("--vectors=20000", "--rounds=1")),
    "startup": ((), ("--models=tiny", "--repeats=1")),
}


def run(name: str, flags) -> tuple[str, dict]:
    """Runs a benchmark; returns its table and the JSON object of its last line.

    Raises:
      subprocess.CalledProcessError: if it fails.
    """
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *flags]
    print(f"\n$ {' '.join(['python', f'benchmarks/{name}.py', *flags])}", flush=True)
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return "\n".join(lines[:-1]).strip(), json.loads(lines[-1])


def main() -> None:
    """Runs the parts and writes their tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds and sizes")
    parser.add_argument("--parts", default=",".join(PARTS), help="tables to make")
    parser.add_argument("--document", action="store_true", help="write docs")
    given = parser.parse_args()
    start, results = time.monotonic(), {}
    for name in given.parts.split(","):
        flags = PARTS[name][given.quick]
        table, results[name] = run(name, flags)
        if given.document:
            command = " ".join(["python", f"benchmarks/{name}.py", *flags])
            document.insert(DOCUMENT, name, f"\n    {command}\n\n{table}\n")
    print(f"\n{(time.monotonic() - start) / 60:.1f} minutes")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
