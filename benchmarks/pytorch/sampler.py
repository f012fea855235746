# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""Samples codes with an RQ-Transformer in plain eager PyTorch.

A Python loop over positions and depths; caches grow by concatenation; top-p sorts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


@torch.inference_mode()
def sample(model, codebook, classes, top_p: float = 1.0) -> torch.Tensor:
    """Returns sampled codes `[B, H, W, D]`.

    Args:
      model: a `transformer.RQTransformer` in evaluation mode.
      codebook: `[K, C]`, in the model's dtype.
      classes: `[B]`.
      top_p: samples from the most likely codes up to this total probability.
    """
    height, width, depth = model.code_shape
    x, caches, maps = model.condition_token(classes), _empty(model, "body", classes), []
    for position in range(height * width):
        context, caches = model.body_transformer(x, caches)
        codes = _position(model, codebook, context, depth, top_p)
        x = model.body_tokens(codes[:, None], codebook)
        x = x + model.pos_emb_hw[:, position : position + 1]
        maps.append(codes)
    return torch.stack(maps, dim=1).view(-1, height, width, depth)


def _position(model, codebook, context, depth, top_p):
    """Returns the codes `[B, D]` of one position, depth by depth."""
    caches, token, total, found = _empty(model, "head", context), context, 0, []
    for d in range(depth):
        x, caches = model.head_transformer(
            token + model.pos_emb_d[:, d : d + 1], caches
        )
        probs = torch.softmax(model.classify(x[:, 0]).float(), dim=-1)
        if top_p < 1:
            probs = _keep_top_p(probs, top_p)
        codes = torch.multinomial(probs, 1)[:, 0]
        total = total + F.embedding(codes, codebook)
        token = model.head_mlp(total)[:, None]
        found.append(codes)
    return torch.stack(found, dim=1)


def _keep_top_p(probs, top_p):
    ranked, order = torch.sort(probs, dim=-1, descending=True)
    ranked[ranked.cumsum(dim=-1) - ranked >= top_p] = 0
    return torch.zeros_like(probs).scatter_(-1, order, ranked)


def _empty(model, stack: str, like):
    """Returns a cache without positions for each layer."""
    blocks = getattr(model, f"{stack}_transformer").blocks
    heads, width = blocks[0].attn.heads, model.pos_emb_d.shape[-1]
    keys = model.pos_emb_d.new_zeros(len(like), heads, 0, width // heads)
    return [(keys, keys)] * len(blocks)
