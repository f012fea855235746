# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Measures `rq convert authors` on a random pair of models in the authors' layout.

    python benchmarks/convert_authors.py --folder=/tmp/random
    python benchmarks/convert_authors.py --folder=/tmp/random --gzip

Writes the pair to FOLDER/authors, as large as the released ImageNet models (1.4B: 6
GB), converts it to FOLDER/run and removes both. `--gzip` packs it first, which takes
minutes. The last line is a JSON object: seconds, and the most memory of the command.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import yaml

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from configs import imagenet  # noqa: E402
from rq.convert import authors, released_config, torch_writer  # noqa: E402
from rq.models.build import rqvae_model, transformer_model  # noqa: E402
from rq.parallel import sharding  # noqa: E402


def random_arrays(module, *inputs):
    """Yields names and random arrays of a module; codebooks are zero."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    # Zeros take no memory until they are written to.
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), sharding.unbox(shapes))
    rng = np.random.default_rng(0)
    for name, array in authors.tensors(module, zeros):
        if not name.startswith("quantizer."):
            array = rng.random(array.shape, np.float32) - np.float32(0.5)
        yield name, array


def write_pair(config, folder: pathlib.Path) -> None:
    """Writes both models as the authors distribute theirs."""
    rqvae, transformer = rqvae_model(config), transformer_model(config)
    images = jnp.zeros((1, *rqvae.image_shape))
    codes = jnp.zeros((1, *rqvae.code_shape), jnp.int32)
    codebook = jnp.zeros((1, rqvae.code_dim))
    models = {
        "rqvae": (rqvae, images),
        "transformer": (transformer, codes, None, codebook),
    }
    for stage, inputs in models.items():
        (folder / stage).mkdir(parents=True)
        section = released_config.to_yaml(config, stage)
        (folder / stage / "config.yaml").write_text(yaml.safe_dump(section))
        arrays = {authors.STATE: random_arrays(*inputs)}
        torch_writer.write_torch_file(folder / stage / "model.pt", arrays)


def convert(source: pathlib.Path, out: pathlib.Path) -> dict[str, float]:
    """Runs the command, and returns what it took."""
    command = [sys.executable, "-m", "rq.convert", "authors"]
    start = time.monotonic()
    subprocess.run([*command, f"--archive={source}", f"--out={out}"], check=True)
    seconds = time.monotonic() - start
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {"seconds": round(seconds, 1), "memory_gib": round(memory / 2**30, 2)}


def size(path: pathlib.Path) -> float:
    """Returns the size of a file, or of the files in a folder, in GB."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return round(sum(file.stat().st_size for file in files) / 1e9, 2)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--model", default="1.4B", choices=imagenet.VARIANTS)
    parser.add_argument("--gzip", action="store_true")
    flags = parser.parse_args()
    source, out = flags.folder / "authors", flags.folder / "run"
    archive = flags.folder / "authors.tar.gz"
    try:
        write_pair(imagenet.get_config(flags.model), source)
        if flags.gzip:
            tar = [
                "tar",
                "-C",
                flags.folder,
                "-I",
                "gzip -1",
                "-cf",
                archive,
                "authors",
            ]
            subprocess.run(tar, check=True)
            shutil.rmtree(source)
            source = archive
        found = convert(source, out) | {"input_gb": size(source), "run_gb": size(out)}
        print(json.dumps({"model": flags.model, "gzip": flags.gzip} | found))
    finally:
        for path in (flags.folder / "authors", out):
            shutil.rmtree(path, ignore_errors=True)
        archive.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
