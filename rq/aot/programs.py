# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Traces the train steps and the sampler with abstract inputs.

Only the codebook and, in stage 1, the loss's frozen network are allocated.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rq import flops
from rq.config import ConfigError, SamplingConfig, image_shape
from rq.models.build import code_dim, condition_sizes, rqvae_model, source_sizes
from rq.models.networks.lpips import PerceptualDistance, own_distance
from rq.models.transformer import code_vectors
from rq.parallel import sharding
from rq.sampling import conditions, program
from rq.sampling.sampler import compile_options, order_options
from rq.training import given_model, loop
from rq.training.stages import FeaturesStage, RQVAEStage, TransformerStage

PROGRAMS = ("features", "rqvae", "transformer", "sample")


def _zeros(abstract):
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract)


def _perceptual(config):
    """Returns the frozen network of stage 1's loss, with zeros as parameters."""
    kind, data = config.rqvae.loss.perceptual, config.data
    if kind == "none":
        return None
    images = jnp.zeros((1, *image_shape(data)))
    if kind == "lpips":
        module = PerceptualDistance()
        boxed = jax.eval_shape(module.init, jax.random.key(0), images, images)
        return module, _zeros(sharding.unbox(boxed["params"]))
    stage = FeaturesStage(config, None, lambda: iter([]))
    boxed = jax.eval_shape(stage.model.init, jax.random.key(0), images)
    params = _zeros(sharding.unbox(boxed["params"]["network"]))
    model = config.features.model
    return own_distance(params, model.widths, model.convs, data.channels)


def make_stage(config, name: str, mesh):
    """Returns a stage as in training, with zeros for the results of earlier stages."""

    def nothing():
        return iter([])

    if name == "features":
        return FeaturesStage(config, mesh, nothing)
    if name == "rqvae":
        return RQVAEStage(config, mesh, nothing, _perceptual(config))
    online, source = config.transformer.online, None
    if config.transformer.source_rqvae:
        source = _rqvae(given_model.of_source_images(config).config, online)
    variables = _rqvae(config, online)[1]
    return TransformerStage(config, mesh, nothing, variables, source=source)


def _rqvae(config, encodes: bool):
    """Returns an RQ-VAE, and zeros for its codebook and, if it encodes, parameters."""
    model = rqvae_model(config)
    images = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
    abstract = sharding.unbox(jax.eval_shape(model.init, jax.random.key(0), images))
    params = _zeros(abstract["params"]) if encodes else {}
    return model, {"params": params, "codebook": _zeros(abstract["codebook"])}


def example(config, stage, encoded: bool = False) -> dict:
    """Returns shape and dtype of all fields of one example of a batch, by name.

    Of stage 2 it has codes if it is `encoded`, or the step does not encode images.
    """
    image = (image_shape(config.data), jnp.uint8)
    label = ((), jnp.int32)
    if stage.name != "transformer":
        return {"image": image, "label": label}
    found = {"label": label, "text": ((config.transformer.text.length,), jnp.int32)}
    paired = config.data.source != "none"
    if config.transformer.online and not encoded:
        return found | {"image": image} | ({"source": image} if paired else {})
    if paired:
        found["source_codes"] = (stage.model.source_shape, jnp.int32)
    rqvae = stage.rqvae
    features = (*rqvae.code_shape[:2], code_dim(config))
    return found | {
        "codes": (rqvae.code_shape, jnp.int32),
        "features": (features, jnp.float32),
    }


def arguments(config, stage, mesh):
    """Returns the abstract state and batch of a step, and the state's shardings."""
    boxed = jax.eval_shape(stage.init, jax.random.key(0))
    place = sharding.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct((stage.batch_size, *shape), dtype, sharding=place)
        for name, (shape, dtype) in example(config, stage).items()
    }
    shardings = sharding.state_shardings(boxed, mesh)
    return sharding.abstract_state(boxed, mesh), batch, shardings


def train_step(config, name: str, mesh) -> jax.stages.Traced:
    """Returns the traced train step of a stage; continue with `.lower().compile()`.

    Raises:
      MeshError: if the batch does not divide over the mesh.
    """
    part = config[name]
    sharding.check_batch(part.batch_size, mesh, part.grad_accum_steps)
    stage = make_stage(config, name, mesh)
    state, batch, shardings = arguments(config, stage, mesh)
    step = loop.compiled(stage.train_step, shardings, mesh)
    with sharding.context(mesh):
        return step.trace(state, batch)


def model_flops(config, name: str, mesh, traced) -> float:
    """Returns the FLOPs of a program's model, without recomputation.

    Args:
      config, name, mesh: see `train_step`; `name` may be 'sample'.
      traced: the traced program.
    """
    if name != "transformer":  # no other program recomputes
        return flops.program_flops(traced.jaxpr)
    stage = make_stage(config, name, mesh)
    # Before the context: this makes a random key, which runs on a real device.
    state, batch, shardings = arguments(config, stage, mesh)
    with sharding.context(mesh):
        return loop.model_flops(stage, traced, state, batch, shardings)


def sampler(config, mesh) -> jax.stages.Traced:
    """Returns the traced program that samples the codes of a batch.

    Raises:
      ConfigError: if `sampling.batch_size` does not divide over the mesh.
    """
    number, parts = config.sampling.batch_size, sharding.batch_parts(mesh)
    if number % parts:
        raise ConfigError(
            f"sampling.batch_size={number} does not divide by data x fsdp = {parts}"
        )
    stage = make_stage(config, "transformer", mesh)
    vectors = code_vectors(stage.codebooks)
    model = stage.model.clone(precision=stage.model.dtype)
    codes = jax.ShapeDtypeStruct((1, *model.code_shape), "int32")
    boxed = jax.eval_shape(model.init, jax.random.key(0), codes, None, vectors)
    params = sharding.abstract_state(boxed["params"], mesh)
    # Passed as arguments: with constants the compiler would remove unused filters.
    asked = SamplingConfig(**config.sampling)
    options = compile_options(asked, stage.model, stage.null_cond)
    shape = (*model.code_shape[:2], asked.depth or model.depth)
    order = order_options(model, np.zeros(shape, bool), asked)
    largest = order.pop("largest_group", 0)
    options = jax.eval_shape(lambda options: options, (*options, order))
    place, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    fields = {
        name: jax.ShapeDtypeStruct((number, *shape), dtype)
        for name, (shape, dtype) in example(config, stage, encoded=True).items()
    }
    cond = jax.eval_shape(lambda batch: conditions.make(config, batch), fields)
    if cond is not None:
        cond = jax.ShapeDtypeStruct(cond.shape, cond.dtype, sharding=place)

    def sample(params, codebook, cond, key, options):
        filters, guidance, order = options
        return program.sample(
            model,
            params,
            codebook,
            cond,
            key,
            batch=number,
            filters=filters,
            guidance=guidance,
            null_cond=stage.null_cond,
            depth=asked.depth or None,
            largest_group=largest,
            **order,
        )

    codebook = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), vectors
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    with sharding.context(mesh):
        return jax.jit(sample).trace(params, codebook, cond, key, options)


def code_shape(config) -> tuple[int, int, int]:
    """Returns (H, W, D) of a config's codes."""
    return rqvae_model(config).code_shape


def cache_bytes(config, mesh) -> float:
    """Returns the bytes of keys, or of values, of a layer of the body on one device."""
    height, width, _ = code_shape(config)
    model = config.transformer.model
    length = height * width + condition_sizes(config)[1] - 1
    source, _ = source_sizes(config)
    if source is not None:
        length += source[0] * source[1]
    rows = config.sampling.batch_size / sharding.batch_parts(mesh)
    size = rows * length * model.width * jnp.dtype(model.dtype).itemsize
    return size / mesh.shape["tensor"]
