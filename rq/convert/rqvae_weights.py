# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Names and layouts of the authors' RQ-VAE checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterator

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from rq.convert.names import (
    StateDict,
    one_or_each,
    plain,
    readable_errors,
    same_or_each,
)
from rq.models import RQVAE
from rq.models.codebook import Codebook
from rq.parallel import sharding


@readable_errors()
def make_module(arch) -> RQVAE:
    """Returns the module of an `arch` section, the authors' defaults filled in.

    Raises:
      ValueError: on settings that the authors' code does not support either.
    """
    network, quantizer = arch["ddconfig"], arch["hparams"]
    if network.get("double_z", False):
        raise ValueError("double_z=True does not fit the quantizer's input")
    channels = network["in_channels"]
    if network["out_ch"] != channels:
        raise ValueError(f"in_channels {channels} differs from out_ch")
    shared = quantizer.get("shared_codebook", False)
    num_codes = same_or_each(quantizer["n_embed"])
    if shared and len(num_codes) > 1:
        raise ValueError(f"a shared codebook of sizes {num_codes}")
    module = RQVAE(
        resolution=network["resolution"],
        image_channels=channels,
        ch=network["ch"],
        ch_mult=tuple(network["ch_mult"]),
        num_res_blocks=network["num_res_blocks"],
        attn_resolutions=tuple(network["attn_resolutions"]),
        z_channels=network["z_channels"],
        embed_dim=quantizer["embed_dim"],
        code_shape=tuple(quantizer["code_shape"]),
        num_codes=num_codes,
        shared_codebook=shared,
        decay=same_or_each(quantizer.get("decay", 0.99)),
        restart_codes=quantizer.get("restart_unused_codes", False),
    )
    latent = tuple(quantizer["latent_shape"][:2])
    if latent != module.latent_shape:
        raise ValueError(f"latent_shape {latent}, the encoder's {module.latent_shape}")
    return module


def to_arch(module: RQVAE) -> dict:
    """Returns the `arch` section of config.yaml: inverts `make_module`.

    Raises:
      ValueError: if the images are not square.
    """
    height, width, _ = module.image_shape
    if height != width:
        raise ValueError(
            f"the authors' code has square images, not {height} x {width}; "
            "rq.Model.save writes any model"
        )
    return {
        "type": "rq-vae",
        "code_hier": 1,
        "hparams": {
            "bottleneck_type": "rq",
            "embed_dim": module.embed_dim,
            "n_embed": plain(module.num_codes),
            "latent_shape": [*module.latent_shape, module.embed_dim],
            "code_shape": list(module.code_shape),
            "shared_codebook": module.shared_codebook,
            "decay": plain(module.decay),
            "restart_unused_codes": module.restart_codes,
            "loss_type": "mse",
            "latent_loss_weight": 0.25,
        },
        "ddconfig": {
            "double_z": False,
            "z_channels": module.z_channels,
            "resolution": height,
            "in_channels": module.image_channels,
            "out_ch": module.image_channels,
            "ch": module.ch,
            "ch_mult": list(module.ch_mult),
            "num_res_blocks": module.num_res_blocks,
            "attn_resolutions": list(module.attn_resolutions),
            "dropout": 0.0,
        },
        "checkpointing": False,
    }


def _torch_name(path: tuple[str, ...]) -> str:
    """('encoder', 'down_0_block_1', 'conv1', 'conv', 'kernel') to the authors' name."""
    *modules, leaf = path
    names = []
    for name in modules:
        if name == "conv" and not names[-1].endswith("sample"):
            continue  # the wrapped nn.Conv
        name = re.sub(r"^(down|up)_(\d+)_(block|attn)_(\d+)$", r"\1.\2.\3.\4", name)
        names.append(re.sub(r"^(down|up)_(\d+)_(\w+sample)$", r"\1.\2.\3", name))
    return ".".join([*names, "bias" if leaf == "bias" else "weight"])


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """[kh, kw, in, out] to [out, in, kh, kw]; biases and norms are the same."""
    if len(shape) != 4:
        return shape
    kh, kw, fan_in, fan_out = shape
    return fan_out, fan_in, kh, kw


def _codebook_shapes(sizes, dim: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for depth, size in enumerate(sizes):
        prefix = f"quantizer.codebooks.{depth}."
        shapes[prefix + "weight"] = (size + 1, dim)
        shapes[prefix + "cluster_size_ema"] = (size,)
        shapes[prefix + "embed_ema"] = (size, dim)
    return shapes


def codebook_from_torch(state_dict, sizes, shared: bool, dim: int) -> Codebook:
    """Returns the codebook of a state dict, names `quantizer.codebooks.{d}.*`.

    Args:
      state_dict: a `StateDict`.
      sizes: number of codes at each depth.
      shared: whether there is one codebook; all depths must then hold the same.
      dim: length of a code vector.

    Raises:
      ValueError: if copies of a shared codebook differ, a padding row is not zero, or
        a number is not finite.
    """
    books, shapes = [], _codebook_shapes(sizes, dim)
    state_dict.require(shapes)
    taken = iter([state_dict.take(name) for name in shapes])
    state_dict.check_values()
    for depth, (weight, counts, sums) in enumerate(
        zip(taken, taken, taken, strict=True)
    ):
        if weight[-1].any():
            raise ValueError(f"codebook {depth}: the padding row is not zero")
        books.append(Codebook(weight[:-1], counts, sums))
    if shared:
        for depth, book in enumerate(books):
            if not jax.tree.all(jax.tree.map(np.array_equal, book, books[0])):
                raise ValueError(
                    f"shared codebooks differ between depths 0 and {depth}"
                )
        return jax.tree.map(jnp.asarray, books[0])

    def pad(x):
        return np.pad(x, [(0, max(sizes) - len(x))] + [(0, 0)] * (x.ndim - 1))

    return jax.tree.map(lambda *xs: jnp.asarray(np.stack([pad(x) for x in xs])), *books)


def from_torch(arch, arrays):
    """See `rq.convert.from_torch`."""
    module = make_module(arch)
    sizes = one_or_each(arch["hparams"]["n_embed"])
    if len(sizes) not in (1, module.depth):
        raise ValueError(f"{len(sizes)} values of n_embed for depth {module.depth}")
    return module, variables(module, arrays)


def variables(module: RQVAE, arrays) -> dict:
    """Returns the variables of a module from a state dict: inverts `tensors`."""
    state_dict = StateDict(arrays)
    images = jax.ShapeDtypeStruct((1, *module.image_shape), jnp.float32)
    abstract = sharding.unbox(jax.eval_shape(module.init, jax.random.key(0), images))
    leaves, params = flax.traverse_util.flatten_dict(abstract["params"]), {}
    shapes = {_torch_name(k): _torch_shape(leaf.shape) for k, leaf in leaves.items()}
    codebooks = _codebook_shapes(module.sizes, module.code_dim)
    state_dict.require(shapes | codebooks)
    for path, leaf in leaves.items():
        array = state_dict.take(_torch_name(path))
        if leaf.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        params[path] = jnp.asarray(array)
    codebook = codebook_from_torch(
        state_dict, module.sizes, module.shared_codebook, module.code_dim
    )
    state_dict.finish()
    return {
        "params": flax.traverse_util.unflatten_dict(params),
        "codebook": {"state": codebook},
    }


def tensors(module: RQVAE, variables) -> Iterator[tuple[str, np.ndarray]]:
    """Yields what `rq.convert.to_torch` returns, one array at a time."""
    params = sharding.unbox(variables["params"])
    for path, leaf in flax.traverse_util.flatten_dict(params).items():
        array = np.asarray(leaf)
        if array.ndim == 4:
            array = np.ascontiguousarray(array.transpose(3, 2, 0, 1))
        yield _torch_name(path), array
    codebook = jax.tree.map(np.asarray, variables["codebook"]["state"])
    for depth, size in enumerate(module.sizes):
        book = codebook
        if not module.shared_codebook:
            book = jax.tree.map(lambda x, d=depth: x[d], codebook)
        book = jax.tree.map(lambda x, k=size: x[:k].copy(), book)
        prefix = f"quantizer.codebooks.{depth}."
        yield prefix + "weight", np.pad(book.embedding, ((0, 1), (0, 0)))
        yield prefix + "cluster_size_ema", book.counts
        yield prefix + "embed_ema", book.sums
