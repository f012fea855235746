# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Prints the time of residual quantization beside that of FAISS's exact search.

    python benchmarks/nearest_code.py --vectors=100000 --num_codes=16384 --depth=4

FAISS (`pip install faiss-cpu`) searches `IndexFlatL2` depth by depth, with NumPy in
between. Both take turns; codes that differ are of vectors with two codes at nearly the
same distance. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json

import jax
import numpy as np
import timing

from rq.models import quantizer


def with_faiss(vectors, codebook, depth: int):
    """Returns codes `[N, D]` of vectors `[N, C]`."""
    import faiss  # optional

    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook)
    residual, codes = vectors.copy(), []
    for _ in range(depth):
        found = index.search(residual, 1)[1][:, 0]
        residual -= codebook[found]
        codes.append(found)
    return np.stack(codes, axis=-1)


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--num_codes", type=int, default=16_384)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8192, help="vectors at once")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((given.vectors, given.dim), np.float32)
    codebook = rng.standard_normal((given.num_codes, given.dim), np.float32) / 2
    quantize = jax.jit(
        lambda z: quantizer.residual_quantize(z, codebook, depth=given.depth)[0]
    )

    def ours():
        starts = range(0, given.vectors, given.batch)
        parts = [quantize(vectors[start : start + given.batch]) for start in starts]
        return np.concatenate(parts)

    theirs = with_faiss(vectors, codebook, given.depth)
    differing = int((ours() != theirs).any(axis=-1).sum())
    seconds = timing.medians(
        {"ours": ours, "faiss": lambda: with_faiss(vectors, codebook, given.depth)},
        given.rounds,
    )
    found = {
        "vectors_per_second": given.vectors / seconds["ours"],
        "over_faiss": seconds["faiss"] / seconds["ours"],
        "differing": differing,
    }
    print(
        f"{given.vectors} vectors of {given.dim}, {given.num_codes} codes, depth "
        f"{given.depth}: {found['vectors_per_second']:.0f} vectors/s, "
        f"{found['over_faiss']:.2f} times as fast as FAISS; {differing} vectors have "
        "other codes"
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
