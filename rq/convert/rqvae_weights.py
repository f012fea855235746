# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Names and layouts of the authors' RQ-VAE checkpoints."""

from __future__ import annotations

import re

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from rq.convert.names import StateDict, one_or_each, readable_errors, same_or_each
from rq.models import RQVAE
from rq.models.codebook import Codebook


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
    if latent != (module.latent_side,) * 2:
        raise ValueError(f"latent_shape {latent}, the encoder's {module.latent_side}")
    return module


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


def _codebook_names(depth: int) -> list[str]:
    return [
        f"quantizer.codebooks.{d}.{part}"
        for d in range(depth)
        for part in ("weight", "cluster_size_ema", "embed_ema")
    ]


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
    books = []
    for depth, size in enumerate(sizes):
        prefix = f"quantizer.codebooks.{depth}."
        weight = state_dict.take(prefix + "weight", (size + 1, dim))
        if weight[-1].any():
            raise ValueError(f"{prefix}weight: the padding row is not zero")
        books.append(
            Codebook(
                weight[:-1],
                state_dict.take(prefix + "cluster_size_ema", (size,)),
                state_dict.take(prefix + "embed_ema", (size, dim)),
            )
        )
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
    module, state_dict = make_module(arch), StateDict(arrays)
    sizes = one_or_each(arch["hparams"]["n_embed"])
    if len(sizes) not in (1, module.depth):
        raise ValueError(f"{len(sizes)} values of n_embed for depth {module.depth}")
    side = module.resolution
    images = jax.ShapeDtypeStruct((1, side, side, module.image_channels), jnp.float32)
    abstract = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), images))
    leaves, params = flax.traverse_util.flatten_dict(abstract["params"]), {}
    state_dict.require([*map(_torch_name, leaves), *_codebook_names(module.depth)])
    for path, leaf in leaves.items():
        name = _torch_name(path)
        if leaf.ndim == 4:  # [out, in, kh, kw] to [kh, kw, in, out]
            kh, kw, fan_in, fan_out = leaf.shape
            array = state_dict.take(name, (fan_out, fan_in, kh, kw))
            array = array.transpose(2, 3, 1, 0)
        else:
            array = state_dict.take(name, leaf.shape)
        params[path] = jnp.asarray(array)
    codebook = codebook_from_torch(
        state_dict, module.sizes, module.shared_codebook, module.code_dim
    )
    state_dict.finish()
    return module, {
        "params": flax.traverse_util.unflatten_dict(params),
        "codebook": {"state": codebook},
    }


def to_torch(module: RQVAE, variables) -> dict[str, np.ndarray]:
    """See `rq.convert.to_torch`."""
    arrays = {}
    params = nn.unbox(variables["params"])
    for path, leaf in flax.traverse_util.flatten_dict(params).items():
        array = np.asarray(leaf)
        arrays[_torch_name(path)] = (
            np.ascontiguousarray(array.transpose(3, 2, 0, 1))
            if array.ndim == 4
            else array
        )
    codebook = jax.tree.map(np.asarray, variables["codebook"]["state"])
    for depth, size in enumerate(module.sizes):
        book = codebook
        if not module.shared_codebook:
            book = jax.tree.map(lambda x, d=depth: x[d], codebook)
        book = jax.tree.map(lambda x, k=size: x[:k].copy(), book)
        prefix = f"quantizer.codebooks.{depth}."
        arrays[prefix + "weight"] = np.pad(book.embedding, ((0, 1), (0, 0)))
        arrays[prefix + "cluster_size_ema"] = book.counts
        arrays[prefix + "embed_ema"] = book.sums
    return arrays
