# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Names and layouts of the authors' RQ-Transformer checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from rq.convert.names import StateDict, readable_errors, same_or_each
from rq.models import RQTransformer, StackConfig
from rq.models.transformer import abstract_codebook
from rq.parallel import sharding

# Our name of each module or parameter, and the authors'.
_NAMES = {
    "condition_positions": "pos_emb_cond",
    "body_positions": "pos_emb_hw",
    "head_positions": "pos_emb_d",
    "condition_embedding": "cond_emb.weight",
    "token_embedding": "tok_emb.weight",
    "body_input": "input_mlp",
    "head_input": "head_mlp",
    "classifier_norm": "classifier.layer_norm",
    "classifier_kernel": "classifier.linear.weight",
    "classifier_bias": "classifier.linear.bias",
    "condition_norm": "cond_classifier.layer_norm",
    "condition_classifier": "cond_classifier.linear",
    "body_stack": "body_transformer",
    "head_stack": "head_transformer",
    "norm1": "ln1",
    "norm2": "ln2",
    "attention": "attn",
    "mlp_in": "mlp.0",
    "mlp_out": "mlp.2",
    "kernel": "weight",
    "scale": "weight",
}
_GELU = {"v1": "exact", "v2": "quick"}
_STRIP = 64  # columns that are copied at once: large transposed matrices miss caches


@readable_errors()
def make_module(arch, vocab_size=None) -> RQTransformer:
    """Returns the module of an `arch` section, the authors' defaults filled in.

    Args:
      arch: the section.
      vocab_size: used where `arch` has none, as in the released files.

    Raises:
      ValueError: on settings that the authors' code does not support either.
    """
    num_codes = same_or_each(arch.get("vocab_size", vocab_size))
    if len(num_codes) > 1:
        raise ValueError(f"vocab_size {num_codes}: unequal sizes fail in the reference")

    def stack(section):
        block = section.get("block", {})
        return StackConfig(
            layers=section["n_layer"],
            heads=block["n_head"],
            gelu=_GELU[block.get("gelu", "v1")],
            residual_dropout=block.get("resid_pdrop", 0.1),
            attention_dropout=block.get("attn_pdrop", 0.0),
            attention_bias=block.get("attn_bias", True),
            mlp_bias=block.get("mlp_bias", True),
        )

    return RQTransformer(
        code_shape=tuple(arch["block_size"]),
        num_codes=num_codes,
        input_dim=arch.get("input_embed_dim") or arch["embed_dim"],
        width=arch["embed_dim"],
        body=stack(arch["body"]),
        head=stack(arch["head"]),
        num_conditions=max(arch.get("vocab_size_cond", 0), 1),
        condition_length=max(arch.get("block_size_cond", 0), 1),
        shared_token_embedding=arch.get("shared_tok_emb", False),
        shared_classifier=arch.get("shared_cls_emb", False),
        body_from_codebook=arch.get("input_emb_vqvae", False),
        head_from_codebook=arch.get("head_emb_vqvae", False),
        cumulative_head=arch.get("cumsum_depth_ctx", False),
        embedding_dropout=arch.get("embd_pdrop", 0.0),
    )


def to_arch(module: RQTransformer) -> dict:
    """Returns the `arch` section of config.yaml: inverts `make_module`."""

    def section(stack: StackConfig):
        block = {
            "n_head": stack.heads,
            "gelu": {ours: theirs for theirs, ours in _GELU.items()}[stack.gelu],
            "resid_pdrop": stack.residual_dropout,
            "attn_pdrop": stack.attention_dropout,
            "attn_bias": stack.attention_bias,
            "mlp_bias": stack.mlp_bias,
        }
        return {"n_layer": stack.layers, "block": block}

    return {
        "type": "rq-transformer",
        "block_size": list(module.code_shape),
        "embed_dim": module.width,
        "input_embed_dim": module.input_dim,
        "shared_tok_emb": module.shared_token_embedding,
        "shared_cls_emb": module.shared_classifier,
        "input_emb_vqvae": module.body_from_codebook,
        "head_emb_vqvae": module.head_from_codebook,
        "cumsum_depth_ctx": module.cumulative_head,
        "vocab_size": max(module.num_codes),
        "vocab_size_cond": module.num_conditions,
        "block_size_cond": module.condition_length,
        "embd_pdrop": module.embedding_dropout,
        "body": section(module.body),
        "head": section(module.head),
    }


def _torch_names(path: tuple[str, ...], layers: dict[str, int]) -> list[str]:
    """Returns the authors' names of one leaf: one, or one for each layer."""
    name = ".".join(_NAMES.get(part, part) for part in path)
    if path[0] not in layers:
        return [name]
    return [
        name.replace(".blocks.", f".blocks.{layer}.")
        for layer in range(layers[path[0]])
    ]


def _layouts(module, path, shape):
    """Returns a leaf's shape in the authors' layout, and functions there and back.

    A leaf of a stack is that of one layer.
    """
    if path[0].endswith("_positions"):
        return (1, *shape), lambda x: x[None], lambda x: x[0]
    if path[0] == "token_embedding" and len(shape) == 3:
        flat = (shape[0] * shape[1], shape[2])
        return flat, lambda x: x.reshape(flat), lambda x: x.reshape(shape)
    is_matrix = path[-1] == "kernel" or path[-1] == "classifier_kernel"
    if is_matrix and len(shape) == 2:  # [in, out] to [out, in]
        return shape[::-1], np.transpose, np.transpose
    return shape, lambda x: x, lambda x: x


def _copy(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns `target`, into which it copies a matrix or other array of that shape."""
    if source.ndim != 2 or source.flags.c_contiguous:
        target[...] = source
        return target
    for start in range(0, source.shape[1], _STRIP):
        strip = slice(start, start + _STRIP)
        target[:, strip] = source[:, strip]
    return target


def _layers(module) -> dict[str, int]:
    return {"body_stack": module.body.layers, "head_stack": module.head.layers}


def _has_offsets(module) -> bool:
    tables = not (module.body_from_codebook and module.head_from_codebook)
    return tables and not module.shared_token_embedding


def from_torch(arch, arrays):
    """See `rq.convert.from_torch`."""
    bias = StateDict(arrays).take("classifier.linear.bias")
    module = make_module(arch, vocab_size=np.atleast_1d(bias).shape[-1])
    return module, variables(module, arrays)


def variables(module: RQTransformer, arrays) -> dict:
    """Returns the variables of a module from a state dict: inverts `tensors`."""
    state_dict = StateDict(arrays)
    height, width, depth = module.code_shape
    abstract = sharding.unbox(
        jax.eval_shape(
            module.init,
            jax.random.key(0),
            jax.ShapeDtypeStruct((1, height, width, depth), jnp.int32),
            None,
            abstract_codebook(module),
        )
    )
    layers, params = _layers(module), {}
    leaves = flax.traverse_util.flatten_dict(abstract["params"])
    shapes, offsets = {}, {"tok_emb.offsets": (depth,)} if _has_offsets(module) else {}
    for path, leaf in leaves.items():
        shape, _, _ = _layouts(module, path, leaf.shape[path[0] in layers :])
        shapes |= dict.fromkeys(_torch_names(path, layers), shape)
    state_dict.require(shapes | offsets)
    for path, leaf in leaves.items():
        stacked = path[0] in layers
        shape, _, inverse = _layouts(module, path, leaf.shape[stacked:])
        names = _torch_names(path, layers)
        # Filled layer by layer: a list of the layers would be a second copy.
        array = np.empty((len(names), *leaf.shape[stacked:]), np.float32)
        for layer, name in enumerate(names):
            _copy(inverse(state_dict.take(name, shape)), array[layer])
        params[path] = jnp.asarray(array if stacked else array[0])
    for name in offsets:
        state_dict.take(name)
    state_dict.finish()
    return {"params": flax.traverse_util.unflatten_dict(params)}


def tensors(module: RQTransformer, variables) -> Iterator[tuple[str, np.ndarray]]:
    """Yields what `rq.convert.to_torch` returns, one layer's array at a time."""
    if module.precision is not None:
        raise ValueError("converts the parameters of training, not those of decoding")
    layers = _layers(module)
    params = sharding.unbox(variables["params"])
    for path, leaf in flax.traverse_util.flatten_dict(params).items():
        leaf, stacked = np.asarray(leaf), path[0] in layers
        _, convert, _ = _layouts(module, path, leaf.shape[stacked:])
        parts = leaf if stacked else [leaf]
        for name, part in zip(_torch_names(path, layers), parts, strict=True):
            part = convert(part)
            yield name, _copy(part, np.empty(part.shape, part.dtype))
    if _has_offsets(module):
        sizes = max(module.num_codes) * np.arange(module.depth, dtype=np.int64)
        yield "tok_emb.offsets", sizes
