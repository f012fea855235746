# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""A process that takes train steps of one stage, with rq or PyTorch, when asked.

`benchmarks/training.py` starts one for each library, with arguments of `make_config`
and `library` as a JSON object. It answers each JSON command, a line, by a JSON line:

    {"steps": 3}     {"seconds": [..]}
    {"profile": 3}   {"parts": {..}}, seconds a step by part; of rq alone
    {"about": true}  {"peak_bytes": ..}, and of rq the FLOPs of a step and its compile
                     time, and the FLOP/s of a large matrix product
"""

from __future__ import annotations

import json
import resource
import sys
import time

import numpy as np


def make_config(stage: str, model: str, dtype: str, batch_size: int):
    """Returns the config of a run without perceptual and adversarial losses.

    Args:
      stage: 'rqvae' or 'transformer'.
      model: '90M' (64 x 64 pixels, 64 channels; width 512, 24 and 4 layers), or 'small'
        (32 channels; width 192, 6 and 1 layers).
      dtype: of convolutions and matrix products.
      batch_size: images of a step; 0: 8 and 16 in the two stages.
    """
    from rq.config import default

    config = default()
    config.data.resolution, config.data.num_classes = 64, 1000
    rqvae, transformer = config.rqvae, config.transformer
    width, layers, heads = {"90M": (512, (24, 4), 8), "small": (192, (6, 1), 6)}[model]
    rqvae.model.ch = 64 if model == "90M" else 32
    rqvae.model.ch_mult = (1, 2, 2, 4)
    rqvae.model.z_channels = 64
    rqvae.model.embed_dim = 64 if stage == "rqvae" else 256
    rqvae.model.num_codes = (2048,)
    rqvae.loss.perceptual, rqvae.adversarial.weight = "none", 0.0
    transformer.condition = "class"
    transformer.model.width = width
    stacks = (transformer.model.body, transformer.model.head)
    for stack, number in zip(stacks, layers, strict=True):
        stack.layers, stack.heads = number, heads
    rqvae.batch_size, transformer.batch_size = batch_size or 8, batch_size or 16
    config[stage].model.dtype = dtype
    return config


def random_batch(config, stage: str) -> dict[str, np.ndarray]:
    """Returns a batch of random images, or of random latents and classes."""
    rng, size = np.random.default_rng(0), config[stage].batch_size
    if stage == "rqvae":
        side, channels = config.data.resolution, config.data.channels
        shape = (size, side, side, channels)
        return {"image": rng.integers(256, size=shape, dtype=np.uint8)}
    rows, columns, depth = config.rqvae.model.code_shape
    shape = (size, rows, columns, config.rqvae.model.embed_dim)
    return {
        "features": rng.normal(size=shape).astype(np.float32),
        "codes": np.zeros((size, rows, columns, depth), np.int32),
        "label": rng.integers(config.data.num_classes, size=size).astype(np.int32),
    }


def random_codebook(config) -> np.ndarray:
    """Returns normal code vectors `[K, C]`."""
    shape = (config.rqvae.model.num_codes[0], config.rqvae.model.embed_dim)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


class JaxSteps:
    """Takes the train steps that `rq train` takes."""

    def __init__(self, config, name: str):
        import jax

        from rq.aot.programs import make_stage
        from rq.cli import kept_memory
        from rq.models.codebook import Codebook
        from rq.parallel import sharding
        from rq.training import loop

        kept_memory.enable()  # as `rq train` does, before anything uses a device
        self.mesh, self.dtype = sharding.make_mesh(), config[name].model.dtype
        stage = make_stage(config, name, self.mesh)
        if name == "transformer":
            book = random_codebook(config)
            state = Codebook(book, np.zeros(len(book), np.float32), book)
            stage.rqvae_variables = {"codebook": {"state": state}}
        key = jax.random.key(0)
        shardings = sharding.state_shardings(jax.eval_shape(stage.init, key), self.mesh)
        init = jax.jit(
            lambda key: sharding.unbox(stage.init(key)), out_shardings=shardings
        )
        with sharding.context(self.mesh):
            self.state = init(key)
            self.batch = sharding.shard_batch(random_batch(config, name), self.mesh)
            step = loop.compiled(stage.train_step, shardings, self.mesh)
            traced = step.trace(self.state, self.batch)
            self.flops = loop.model_flops(
                stage, traced, self.state, self.batch, shardings
            )
            start = time.perf_counter()
            self.step = traced.lower().compile()
        self.compile_seconds = time.perf_counter() - start

    def __call__(self) -> float:
        """Takes a step and returns its loss."""
        self.state, metrics = self.step(self.state, self.batch)
        return float(metrics["loss"])

    def profile(self, steps: int) -> dict[str, float]:
        """Returns seconds a step by part."""
        import profile_parts

        return profile_parts.seconds_by_part(self, self.step.as_text(), steps)

    def about(self) -> dict[str, float]:
        """Returns a step's FLOPs, its compile time, and the device's peak FLOP/s.

        The peak is the published one; of a device without one, that of a large product.
        """
        import jax
        import timing

        from rq import flops

        peak = flops.peak_flops(jax.devices()[0].device_kind)
        return {
            "flops": self.flops,
            "compile_seconds": self.compile_seconds,
            "peak_flops": peak or timing.flop_rate(self.dtype),
        }


class TorchSteps:
    """Takes train steps of the same model in plain eager PyTorch."""

    def __init__(self, config, name: str):
        import torch
        from pytorch import rqvae, transformer

        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high")  # TF32 on GPUs, as JAX
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = config[name].model.dtype
        self.autocast = torch.autocast(
            self.device, torch.bfloat16, enabled=dtype == "bfloat16"
        )
        batch, rates = random_batch(config, name), config[name].optimizer
        rates = dict(lr=rates.learning_rate, betas=(rates.b1, rates.b2), eps=rates.eps)
        if name == "rqvae":
            model = rqvae.RQVAE(**rqvae_sizes(config)).to(self.device).train()
            optimizer = torch.optim.Adam(model.parameters(), **rates)
            images = torch.from_numpy(batch["image"]).to(self.device)
            images = images.permute(0, 3, 1, 2).contiguous() / 127.5 - 1
            self._step = lambda: rqvae.train_step(model, optimizer, images)
        else:
            model = transformer.RQTransformer(**transformer_sizes(config))
            model = model.to(self.device).train()
            decay = config.transformer.optimizer.weight_decay
            optimizer = torch.optim.AdamW(
                model.parameters(), **rates, weight_decay=decay
            )
            features, classes, codebook = (
                torch.from_numpy(x).to(self.device)
                for x in (
                    batch["features"],
                    batch["label"].astype(np.int64),
                    random_codebook(config),
                )
            )
            temperature = config.transformer.loss.temperature
            self._step = lambda: transformer.train_step(
                model, optimizer, features, classes, codebook, temperature
            )

    def __call__(self) -> float:
        """Takes a step and returns its loss."""
        with self.autocast:
            return float(self._step())

    def about(self) -> dict[str, float]:
        """Returns nothing: FLOPs and peak are those of the other process."""
        return {}


def rqvae_sizes(config) -> dict:
    """Returns the arguments of `pytorch.rqvae.RQVAE` for a config."""
    model = config.rqvae.model
    names = ("ch", "ch_mult", "num_res_blocks", "attn_resolutions", "z_channels")
    return dict(
        {name: model[name] for name in names},
        resolution=config.data.resolution,
        image_channels=config.data.channels,
        embed_dim=model.embed_dim,
        depth=model.code_shape[2],
        num_codes=model.num_codes[0],
        decay=model.decay[0],
    )


def transformer_sizes(config) -> dict:
    """Returns the arguments of `pytorch.transformer.RQTransformer` for a config."""
    model = config.transformer.model
    return dict(
        code_shape=config.rqvae.model.code_shape,
        num_codes=config.rqvae.model.num_codes[0],
        width=model.width,
        body_layers=model.body.layers,
        head_layers=model.head.layers,
        heads=model.body.heads,
        input_dim=config.rqvae.model.embed_dim,
        num_classes=config.data.num_classes,
        dropout=model.body.residual_dropout,
    )


def _seconds(call, times: int) -> list[float]:
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def peak_bytes(library: str) -> int:
    """Returns the most memory held on the GPU, or by this process if there is none."""
    if library == "rq":
        import jax

        found = jax.devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in found:
            return found["peak_bytes_in_use"]
    else:
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Answers commands until standard input ends."""
    given = json.loads(sys.argv[1])
    library = given.pop("library")
    steps = {"rq": JaxSteps, "torch": TorchSteps}[library]
    step = steps(make_config(**given), given["stage"])
    for line in sys.stdin:
        command = json.loads(line)
        if "steps" in command:
            seconds = _seconds(step, command["steps"])
            answer = {"seconds": seconds}
        elif "profile" in command:
            answer = {"parts": step.profile(command["profile"])}
        else:
            answer = {"peak_bytes": peak_bytes(library)} | step.about()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
