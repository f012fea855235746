# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Reports the kernels of programs compiled for GPUs."""

from __future__ import annotations

import dataclasses

from rq.aot import hlo, kernels


def make(
    text: str,
    thunks: str,
    code_shape: tuple[int, int, int] | None = None,
    cache: float | None = None,
) -> dict:
    """Returns a program's kernels and what slows them down, for JSON.

    Args:
      text: `compiled.as_text()`.
      thunks: see `rq.aot.kernels.parse`.
      code_shape: of the sampler's codes, (H, W, D); None of a train step.
      cache: bytes of the sampler's cache of one layer of the body, on one device.

    Returns:
      'step' has the totals of one train step or batch of samples, as
      `rq.aot.kernels.Count`; of the sampler, 'position' and 'head_step' have those of
      one iteration of its loops (None where a loop is unrolled), and 'cache_copies' is
      the number of copies of a cache. 'float32_products' counts products of float32.
    """
    steps = kernels.parse(thunks, text)
    found = {
        "step": dataclasses.asdict(kernels.count(steps)),
        "float32_products": hlo.float32_products(text),
    }
    if code_shape is not None and cache is not None:
        height, width, depth = code_shape
        for name, trips in (("position", height * width), ("head_step", depth)):
            loops = kernels.loops(steps, trips)
            found[name] = dataclasses.asdict(loops[0]) if loops else None
        found["cache_copies"] = hlo.copies(text, cache)
    return found


def text(found: dict) -> list[str]:
    """Returns the lines of the report."""
    names = {
        "step": "run",
        "position": "position",
        "head_step": "step of the head",
    }
    parts = [
        f"{found[name]['kernels']:,} in {found[name]['launches']:,} launches a {label}"
        for name, label in names.items()
        if found.get(name)
    ]
    whole = found["step"]
    lines = [
        f"kernels      {', '.join(parts)}; {whole['command_buffers']:,} launches "
        "are CUDA graphs",
        f"host         {whole['host_reads']:,} waits for a value of the GPU, "
        f"{whole['host_transfers']:,} transfers",
        f"products     {found['float32_products']:,} of float32",
    ]
    if "cache_copies" in found:
        lines.append(f"caches       {found['cache_copies']:,} copies")
    return lines
