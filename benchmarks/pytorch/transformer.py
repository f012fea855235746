# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The RQ-Transformer and its training loss in plain eager PyTorch.

    model = RQTransformer((8, 8, 4), num_codes=2048, width=512, body_layers=24,
                          head_layers=4, heads=8, input_dim=256, num_classes=1000)
    load_flax(model, module, variables)   # weights of a `rq.models.RQTransformer`
    logits = model(codes, classes, codebook)

Parameters have the names of the authors' checkpoints. Attention is
`F.scaled_dot_product_attention`, the fused kernel that eager PyTorch offers; the
authors' code multiplies, masks and takes the softmax in separate calls.

Legend: B batch, H W code grid, T = H W positions, D depth, K codes, C code vector,
M width, N heads, F head dimension, S keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from rq import convert

Cache = tuple[torch.Tensor, torch.Tensor]  # keys and values [B, N, S, F] of one layer


class Attention(nn.Module):
    """Multi-head self-attention, causal, or of new positions to all in a cache."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.proj = (
            nn.Linear(width, width) for _ in range(4)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, cache: Cache | None = None):
        """Returns outputs `[B, T, M]` and the cache with the T positions at its end.

        With a cache, T is 1.
        """
        batch, length, width = x.shape

        def project(layer):
            return layer(x).view(batch, length, self.heads, -1).transpose(1, 2)

        q, k, v = project(self.query), project(self.key), project(self.value)
        if cache is not None:
            k = torch.cat([cache[0], k], dim=2)
            v = torch.cat([cache[1], v], dim=2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        y = y.transpose(1, 2).reshape(batch, length, width)
        return self.dropout(self.proj(y)), (k, v)


class Block(nn.Module):
    """Adds pre-norm attention and a 4 x wider MLP, with dropout, to shortcuts."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, dropout)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: torch.Tensor, cache: Cache | None = None):
        """Returns outputs `[B, T, M]` and the cache, as `Attention` does."""
        y, cache = self.attn(self.ln1(x), cache)
        x = x + y
        return x + self.mlp(self.ln2(x)), cache


class Stack(nn.Module):
    """Applies blocks one after another."""

    def __init__(self, layers: int, width: int, heads: int, dropout: float):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))

    def forward(self, x: torch.Tensor, caches: list[Cache] | None = None):
        """Returns outputs `[B, T, M]` and the caches of all layers."""
        caches, updated = caches or [None] * len(self.blocks), []
        for block, cache in zip(self.blocks, caches, strict=True):
            x, cache = block(x, cache)
            updated.append(cache)
        return x, updated


class RQTransformer(nn.Module):
    """Predicts each code from those before it: a body over T, a head over D.

    One embedding and one classifier for all depths; embeddings come from the RQ-VAE's
    codebook `[K, C]`, an argument of every call, and the head sees its sums over depth
    (the paper's settings). For bfloat16, call `.to(torch.bfloat16)`.
    """

    def __init__(
        self,
        code_shape: tuple[int, int, int],
        num_codes: int,
        width: int,
        body_layers: int,
        head_layers: int,
        heads: int,
        input_dim: int,
        num_classes: int = 1,
        dropout: float = 0.1,
    ):
        super().__init__()
        height, columns, depth = self.code_shape = code_shape

        def positions(length):
            return nn.Parameter(0.02 * torch.randn(1, length, width))

        self.pos_emb_cond = positions(1)
        self.pos_emb_hw = positions(height * columns)
        self.pos_emb_d = positions(depth)
        self.cond_emb = nn.Embedding(num_classes, width)
        self.input_mlp = nn.Linear(input_dim, width)
        self.head_mlp = nn.Linear(input_dim, width)
        self.body_transformer = Stack(body_layers, width, heads, dropout)
        self.head_transformer = Stack(head_layers, width, heads, dropout)
        self.classifier = nn.Module()
        self.classifier.layer_norm = nn.LayerNorm(width)
        self.classifier.linear = nn.Linear(width, num_codes)

    def forward(self, codes, classes, codebook) -> torch.Tensor:
        """Returns teacher-forced logits `[B, H, W, D, K]`.

        Args:
          codes: `[B, H, W, D]`, int64.
          classes: `[B]`, int64; zeros where there are none.
          codebook: `[K, C]`.
        """
        batch, height, columns, depth = codes.shape
        codes = codes.view(batch, height * columns, depth)
        tokens = self.body_tokens(codes, codebook) + self.pos_emb_hw
        x = torch.cat([self.condition_token(classes), tokens[:, :-1]], dim=1)
        context, _ = self.body_transformer(x)

        vectors = F.embedding(codes, codebook).cumsum(dim=-2)
        inputs = [context[:, :, None], self.head_mlp(vectors[:, :, :-1])]
        x = torch.cat(inputs, dim=2) + self.pos_emb_d
        x, _ = self.head_transformer(x.flatten(0, 1))
        return self.classify(x).view(batch, height, columns, depth, -1)

    def condition_token(self, classes) -> torch.Tensor:
        """Returns the body's first input `[B, 1, M]`."""
        return self.cond_emb(classes)[:, None] + self.pos_emb_cond

    def body_tokens(self, codes, codebook) -> torch.Tensor:
        """Returns body inputs `[..., M]` of codes `[..., D]`, without position."""
        return self.input_mlp(F.embedding(codes, codebook)).sum(dim=-2)

    def classify(self, x) -> torch.Tensor:
        """Returns logits `[..., K]` of the head's outputs `[..., M]`."""
        return self.classifier.linear(self.classifier.layer_norm(x))


def load_flax(model: RQTransformer, module, variables) -> None:
    """Loads the weights of a `rq.models.RQTransformer` of the same sizes.

    Raises:
      RuntimeError: where names or shapes differ.
    """
    arrays = convert.to_torch(module, variables)
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    model.load_state_dict(tensors, strict=True)


@torch.no_grad()
def stochastic_codes(features, codebook, depth: int, temperature: float):
    """Returns sampled codes and soft targets of latents (paper section 3.2.3).

    Args:
      features: `[..., C]`.
      codebook: `[K, C]`.
      depth: D.
      temperature: of both.

    Returns:
      codes `[..., D]` and probabilities `[..., D, K]`.
    """
    residual = features.reshape(-1, features.shape[-1])
    codes, probabilities = [], []
    squares = codebook.square().sum(dim=-1)
    for _ in range(depth):
        distances = torch.addmm(
            residual.square().sum(dim=-1, keepdim=True) + squares,
            residual,
            codebook.T,
            alpha=-2,
        )
        soft = torch.softmax(-distances / temperature, dim=-1)
        chosen = torch.multinomial(soft, 1)[:, 0]
        residual = residual - F.embedding(chosen, codebook)
        codes.append(chosen)
        probabilities.append(soft)
    shape = (*features.shape[:-1], depth)
    codes = torch.stack(codes, dim=1).view(shape)
    return codes, torch.stack(probabilities, dim=1).view(*shape, -1)


def soft_cross_entropy(logits, targets) -> torch.Tensor:
    """Returns the mean cross entropy with soft targets; both are `[..., K]`."""
    return -(targets * F.log_softmax(logits, dim=-1)).sum(dim=-1).mean()


def train_step(model, optimizer, features, classes, codebook, temperature=0.5):
    """Takes one step of the optimizer and returns the loss.

    Args:
      model: an `RQTransformer` in training mode.
      optimizer: of its parameters.
      features: the RQ-VAE's latents `[B, H, W, C]`.
      classes: `[B]`.
      codebook: `[K, C]`.
      temperature: of soft targets and sampled codes.
    """
    depth = model.code_shape[2]
    codes, targets = stochastic_codes(features, codebook, depth, temperature)
    loss = soft_cross_entropy(model(codes, classes, codebook), targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.detach()
