# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Prints how fast codes are sampled, beside plain eager PyTorch and beside the limit.

    python benchmarks/sampling.py --model=small --batch_sizes=1,8,32

Random weights: speed does not depend on them. One table row for each batch size and
precision, with columns:

  codes/s, ms/image   of the codes; with `--pixels` also of an image of the paper's
                      RQ-VAE at 256 x 256
  compile, MiB        seconds to compile, and memory of the compiled program: weights,
                      caches and what it needs while it runs
  PyTorch             our codes/s over those of benchmarks/pytorch at the same dtype, in
                      turns, if PyTorch is installed
  of limit            the time that reading all weights and caches, or all FLOPs, would
                      take at the rates measured in this run (the longer of the two),
                      over the time taken
  16x16x1             images/s over those of a model of as many parameters in the body
                      alone, for a map of 256 codes of depth 1 (float32, largest
                      batch)

The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import timing

from rq.config import SamplingConfig, default
from rq.flops import program_flops
from rq.models.build import rqvae_model
from rq.models.projection import PRECISIONS
from rq.models.stack import StackConfig
from rq.models.transformer import RQTransformer
from rq.sampling import program
from rq.sampling.sampler import compile_options

SIZES = {  # width, heads, layers of the body and of the head; the last three: ImageNet
    "small": (512, 8, 24, 4),
    "medium": (1536, 24, 12, 4),
    "large": (1536, 24, 42, 6),
    "huge": (2560, 40, 42, 6),
}
CLASSES, CODE_DIM = 1000, 256


def transformer(size: str, code_shape, num_codes: int) -> RQTransformer:
    """Returns a class-conditional model; of depth 1, the body has all layers."""
    width, heads, body, head = SIZES[size]
    if code_shape[2] == 1:
        body, head = body + head, 0
    return RQTransformer(
        code_shape=code_shape,
        num_codes=(num_codes,),
        input_dim=CODE_DIM,
        num_conditions=CLASSES + 1,
        width=width,
        body=StackConfig(body, heads),
        head=StackConfig(head, heads),
    )


@functools.cache
def weights(model: RQTransformer):
    """Returns random parameters, those of decoding where the model decodes."""
    codes = jnp.zeros((1, *model.code_shape), jnp.int32)
    codebook = jnp.zeros((max(model.num_codes), CODE_DIM))
    shapes = jax.eval_shape(model.init, jax.random.key(0), codes, None, codebook)

    def random(x):
        if x.dtype == jnp.int8:
            return jax.random.randint(jax.random.key(0), x.shape, -127, 128, x.dtype)
        return jax.random.normal(jax.random.key(0), x.shape, x.dtype) * 0.02

    return jax.tree.map(random, nn.unbox(shapes["params"]))


class Case:
    """A compiled sampler of one model, batch size and precision."""

    def __init__(self, model, precision: str, batch: int, options: SamplingConfig):
        dtype = "float32" if precision == "int8" else precision
        self.model = model.clone(precision=precision, dtype=dtype)
        self.params, self.batch = weights(self.model), batch
        shape = (max(model.num_codes), CODE_DIM)
        self.codebook = jax.random.normal(jax.random.key(1), shape)
        filters, guidance = compile_options(options, self.model, jnp.int32(CLASSES))

        def sample(params, codebook, cond, key):
            return program.sample(
                self.model,
                params,
                codebook,
                cond,
                key,
                filters=filters,
                guidance=guidance,
                null_cond=jnp.int32(CLASSES),
            )

        self.cond = jnp.arange(batch, dtype=jnp.int32) % CLASSES
        self._arguments = (self.params, self.codebook, self.cond)
        start = time.perf_counter()
        traced = jax.jit(sample).trace(*self._arguments, jax.random.key(0))
        self._compiled = traced.lower().compile()
        self.compile_seconds = time.perf_counter() - start
        self.flops = program_flops(traced.jaxpr)
        memory = self._compiled.memory_analysis()
        self.memory = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        self.rows = batch * (1 if guidance is None else 2)

    def __call__(self, seed: int = 0) -> jax.Array:
        """Returns the codes of a batch."""
        return self._compiled(*self._arguments, jax.random.key(seed))

    def bytes_read(self) -> float:
        """Returns the bytes of weights and caches that a batch reads.

        Every position reads the body once and its cache in full; every depth the head,
        its cache and the classifier.
        """
        model, item = self.model, jnp.dtype(self.model.dtype).itemsize

        def size(tree):
            return sum(x.nbytes for x in jax.tree.leaves(tree))

        def caches(config, length):
            return config.layers * 2 * self.rows * length * model.width * item

        head = size(self.params["head_stack"]) + caches(model.head, model.depth)
        head += size([x for name, x in self.params.items() if "classifier" in name])
        body = size(self.params["body_stack"]) + caches(model.body, model.positions)
        return model.positions * (body + model.depth * head)


@functools.cache
def pytorch_model(model: RQTransformer, device: str, dtype):
    """Returns the same model in PyTorch, with random parameters."""
    import torch
    from pytorch.transformer import RQTransformer as TorchTransformer

    with torch.device(device):
        theirs = TorchTransformer(
            model.code_shape,
            max(model.num_codes),
            model.width,
            model.body.layers,
            model.head.layers,
            model.body.heads,
            CODE_DIM,
            CLASSES + 1,
        )
    return theirs.to(dtype).eval()


def pytorch_sampler(model, precision: str, batch: int, top_p: float):
    """Returns the function that samples a batch in eager PyTorch."""
    import torch
    from pytorch import sampler

    torch.set_float32_matmul_precision("high")  # TF32 on GPUs, as JAX
    dtype = getattr(torch, precision)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    theirs = pytorch_model(model, device, dtype)
    codebook = torch.randn(max(model.num_codes), CODE_DIM, device=device, dtype=dtype)
    classes = torch.arange(batch, device=device) % CLASSES

    def sample():
        return np.asarray(sampler.sample(theirs, codebook, classes, top_p).cpu())

    return sample


def decoder_seconds(batch: int) -> float:
    """Returns seconds to decode codes to pixels with the paper's RQ-VAE."""
    rqvae = rqvae_model(default())
    images = jnp.zeros((1, 256, 256, 3))
    shapes = jax.eval_shape(rqvae.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda x: jnp.full(x.shape, 0.01, x.dtype), shapes)
    codes = jnp.zeros((batch, *rqvae.code_shape), jnp.int32)
    decode = jax.jit(lambda v, codes: rqvae.apply(v, codes, method="decode_codes"))
    jax.block_until_ready(decode(variables, codes))
    return timing.medians({"": lambda: decode(variables, codes)}, 3)[""]


def measure(given, options, model, flat, limits, precision, batch) -> dict:
    """Returns the figures of one batch size and precision."""
    ours = Case(model, precision, batch, options)
    runs = {"ours": ours}
    with_pytorch = given.pytorch and importlib.util.find_spec("torch") is not None
    if with_pytorch and precision != "int8" and given.guidance == 1:
        runs["pytorch"] = pytorch_sampler(model, precision, batch, given.top_p)
    largest = batch == max(given.batch_sizes)
    if flat is not None and largest and precision == "float32":
        runs["flat"] = Case(flat, precision, batch, options)
    seconds = timing.medians(runs, given.rounds)
    reading = ours.bytes_read() / limits["bandwidth"]
    computing = ours.flops / limits[precision]
    codes = batch * model.positions * model.depth
    found = {
        "precision": precision,
        "batch": batch,
        "codes_per_second": codes / seconds["ours"],
        "ms_per_image": 1e3 * seconds["ours"] / batch,
        "compile_seconds": ours.compile_seconds,
        "mebibytes": ours.memory / 2**20,
        "of_limit": max(reading, computing) / seconds["ours"],
        "limited_by": "bandwidth" if reading > computing else "FLOPs",
    }
    if given.pixels:
        pixels = decoder_seconds(batch)
        found["ms_per_image_with_pixels"] = 1e3 * (seconds["ours"] + pixels) / batch
    for name in ("pytorch", "flat"):
        if name in seconds:
            found[f"over_{name}"] = seconds[name] / seconds["ours"]
    return found


def row(found: dict) -> str:
    """Returns a row of the table."""

    def ratio(name):
        return f"{found[name]:.2f}" if name in found else ""

    cells = [
        found["precision"],
        found["batch"],
        f"{found['codes_per_second']:.0f}",
        f"{found['ms_per_image']:.0f}",
        f"{found['compile_seconds']:.1f}",
        f"{found['mebibytes']:.0f}",
        ratio("over_pytorch"),
        f"{found['of_limit']:.0%} ({found['limited_by']})",
        ratio("over_flat"),
    ]
    if "ms_per_image_with_pixels" in found:
        cells.append(f"{found['ms_per_image_with_pixels']:.0f}")
    return f"| {' | '.join(map(str, cells))} |"


def numbers(text: str) -> list[int]:
    """Parses numbers separated by commas."""
    return [int(x) for x in text.split(",")]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=SIZES, default="small")
    parser.add_argument("--code_shape", default="8x8x4")
    parser.add_argument("--num_codes", type=int, default=16_384)
    parser.add_argument("--top_p", type=float, default=0.92)
    parser.add_argument("--top_k", type=int, default=0)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--batch_sizes", type=numbers, default=[1, 8, 32])
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pixels", action="store_true")
    for name in ("pytorch", "flat"):
        parser.add_argument(f"--no_{name}", dest=name, action="store_false")
    given = parser.parse_args()
    shape = tuple(int(x) for x in given.code_shape.split("x"))
    options = SamplingConfig(
        top_k=given.top_k, top_p=given.top_p, guidance=given.guidance
    )
    model = transformer(given.model, shape, given.num_codes)
    flat = (
        transformer(given.model, (16, 16, 1), given.num_codes) if given.flat else None
    )
    precisions = given.precisions.split(",")
    limits = {"bandwidth": timing.bandwidth()}
    limits |= {name: timing.flop_rate(name) for name in precisions}
    rates = ", ".join(f"{name} {limits[name] / 1e9:.0f}" for name in precisions)
    print(
        f"{jax.devices()[0].device_kind}, {given.model}, {given.code_shape}, "
        f"K = {given.num_codes}, top-p {given.top_p}\n"
        f"reads {limits['bandwidth'] / 1e9:.1f} GB/s; GFLOP/s: {rates}\n"
    )
    columns = "precision | batch | codes/s | ms/image | compile | MiB | PyTorch | "
    columns += "of limit | 16x16x1" + " | ms/image, pixels" * given.pixels
    print(f"| {columns} |\n|{'---|' * (columns.count('|') + 1)}", flush=True)
    results = []
    for batch in given.batch_sizes:
        for precision in precisions:
            found = measure(given, options, model, flat, limits, precision, batch)
            print(row(found), flush=True)
            results.append(found)
    print(json.dumps({"limits": limits, "results": results}))


if __name__ == "__main__":
    main()
