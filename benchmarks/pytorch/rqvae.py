# Copyright 2026 The rq Authors.
# SPDX-License-Identifier: Apache-2.0
"""The RQ-VAE and its training loss, without a discriminator, in plain eager PyTorch.

    model = RQVAE(64, 3, ch=64, ch_mult=(1, 2, 2, 4), num_res_blocks=2,
                  attn_resolutions=(8,), z_channels=64, embed_dim=64,
                  depth=4, num_codes=2048)
    load_flax(model, module, variables)   # weights of a `rq.models.RQVAE`
    outputs, codes, commitment = model(images)

Parameters have the names of the authors' checkpoints. Images are NCHW, as in their
code. The codebook is shared by all depths, and moves by moving averages.

Legend: N vectors (batch and positions), C channels, K codes, D depth.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from rq import convert


def group_norm(channels: int) -> nn.GroupNorm:
    """Returns a GroupNorm of 32 groups."""
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Adds (norm, swish, convolution) x 2 to a shortcut, 1 x 1 if widths differ."""

    def __init__(self, channels: int, features: int):
        super().__init__()
        self.norm1, self.norm2 = group_norm(channels), group_norm(features)
        self.conv1 = nn.Conv2d(channels, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)
        if channels != features:
            self.nin_shortcut = nn.Conv2d(channels, features, 1)

    def forward(self, x):
        """Returns `[B, features, H, W]`."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        if hasattr(self, "nin_shortcut"):
            x = self.nin_shortcut(x)
        return x + h


class AttentionBlock(nn.Module):
    """Adds single-head self-attention over all positions to a shortcut."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.q, self.k, self.v, self.proj_out = (
            nn.Conv2d(channels, channels, 1) for _ in range(4)
        )

    def forward(self, x):
        """Returns `[B, C, H, W]`."""
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(q.mT @ k * q.shape[1] ** -0.5, dim=-1)
        return x + self.proj_out((v @ weights.mT).view(x.shape))


class Level(nn.Module):
    """Applies the residual blocks of one resolution, attention after each or none."""

    def __init__(self, channels: int, features: int, blocks: int, attention: bool):
        super().__init__()
        self.block = nn.ModuleList(
            ResidualBlock(features if j else channels, features) for j in range(blocks)
        )
        count = blocks if attention else 0
        self.attn = nn.ModuleList(AttentionBlock(features) for _ in range(count))

    def forward(self, x):
        """Returns `[B, features, H, W]`."""
        for j, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[j](x)
        return x


class Downsample(nn.Module):
    """Halves the resolution by a convolution, padded on the right and bottom only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x):
        """Returns `[B, C, H / 2, W / 2]`."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the resolution by repetition and a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        """Returns `[B, C, 2 H, 2 W]`."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    """Applies block, attention, block at the lowest resolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = AttentionBlock(channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, x):
        """Returns `[B, C, H, W]`."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Maps images to latents `[B, z_channels, R / f, R / f]`, f = 2 ** (levels - 1)."""

    def __init__(
        self, resolution, channels, ch, ch_mult, blocks, attn_resolutions, z_channels
    ):
        super().__init__()
        widths = [ch * mult for mult in ch_mult]
        self.conv_in = nn.Conv2d(channels, ch, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (before, width) in enumerate(zip([ch, *widths], widths, strict=False)):
            attention = resolution // 2**i in attn_resolutions
            level = Level(before, width, blocks, attention)
            if i < len(widths) - 1:
                level.downsample = Downsample(width)
            self.down.append(level)
        self.mid = Middle(widths[-1])
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)

    def forward(self, images):
        """Returns latents."""
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
            if hasattr(level, "downsample"):
                x = level.downsample(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Maps latents to images: the mirror image, with one more block per level."""

    def __init__(
        self, resolution, channels, ch, ch_mult, blocks, attn_resolutions, z_channels
    ):
        super().__init__()
        widths = [ch * mult for mult in ch_mult]
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList()
        for i, (width, before) in enumerate(
            zip(widths, [*widths[1:], widths[-1]], strict=True)
        ):
            attention = resolution // 2**i in attn_resolutions
            level = Level(before, width, blocks + 1, attention)
            if i > 0:
                level.upsample = Upsample(width)
            self.up.append(level)
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(self, z):
        """Returns images `[B, channels, R, R]`."""
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
            if hasattr(level, "upsample"):
                x = level.upsample(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Codebook(nn.Module):
    """Code vectors `[K, C]`, their moving averages, and residual quantization."""

    def __init__(self, num_codes: int, channels: int, depth: int, decay: float):
        super().__init__()
        self.depth, self.decay = depth, decay
        weight = torch.randn(num_codes, channels)
        self.register_buffer("weight", weight)
        self.register_buffer("cluster_size_ema", torch.zeros(num_codes))
        self.register_buffer("embed_ema", weight.clone())

    @torch.no_grad()
    def forward(self, vectors):
        """Returns codes `[N, D]` and running sums `[D, N, C]` of vectors `[N, C]`.

        In training, each depth moves the codebook that the next depth searches.
        """
        residual, total, codes, sums = vectors, torch.zeros_like(vectors), [], []
        for _ in range(self.depth):
            distances = torch.addmm(
                residual.square().sum(dim=1, keepdim=True)
                + self.weight.square().sum(dim=1),
                residual,
                self.weight.T,
                alpha=-2,
            )
            chosen = distances.argmin(dim=1)
            found = F.embedding(chosen, self.weight)
            if self.training:
                self.update(residual, chosen)
            residual, total = residual - found, total + found
            codes.append(chosen)
            sums.append(total)
        return torch.stack(codes, dim=1), torch.stack(sums)

    def update(self, vectors, codes):
        """Moves the averages, restarts unused codes, and computes the code vectors."""
        num_codes, decay = len(self.weight), self.decay
        counts = torch.bincount(codes, minlength=num_codes).to(vectors.dtype)
        sums = torch.zeros_like(self.weight).index_add_(0, codes, vectors)
        self.cluster_size_ema.mul_(decay).add_(counts, alpha=1 - decay)
        self.embed_ema.mul_(decay).add_(sums, alpha=1 - decay)

        tiles = -(-num_codes // len(vectors))
        fresh = vectors.repeat(tiles, 1)
        if tiles > 1:
            fresh = fresh + 0.01 / vectors.shape[1] ** 0.5 * torch.rand_like(fresh)
        fresh = fresh[torch.randperm(len(fresh))[:num_codes]]
        used = (self.cluster_size_ema >= 1).to(vectors.dtype)
        self.embed_ema.mul_(used[:, None]).add_(fresh * (1 - used)[:, None])
        self.cluster_size_ema.mul_(used).add_(1 - used)

        total, epsilon = self.cluster_size_ema.sum(), 1e-5
        smoothed = (self.cluster_size_ema + epsilon) / (total + num_codes * epsilon)
        self.weight.copy_(self.embed_ema / (smoothed * total)[:, None])


class RQVAE(nn.Module):
    """Maps images `[B, image_channels, R, R]` in [-1, 1] to codes and back."""

    def __init__(
        self,
        resolution: int,
        image_channels: int,
        ch: int,
        ch_mult: tuple[int, ...],
        num_res_blocks: int,
        attn_resolutions: tuple[int, ...],
        z_channels: int,
        embed_dim: int,
        depth: int,
        num_codes: int,
        decay: float = 0.99,
    ):
        super().__init__()
        sizes = (resolution, image_channels, ch, ch_mult, num_res_blocks)
        sizes += (attn_resolutions, z_channels)
        self.encoder, self.decoder = Encoder(*sizes), Decoder(*sizes)
        self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        self.codebook = Codebook(num_codes, embed_dim, depth, decay)

    def forward(self, images):
        """Returns reconstructions, codes `[B, H, W, D]` and the commitment loss."""
        z = self.quant_conv(self.encoder(images)).permute(0, 2, 3, 1)
        codes, sums = self.codebook(z.detach().flatten(0, 2))
        sums = sums.view(-1, *z.shape)
        commitment = (z - sums).square().mean()
        quantized = (z + (sums[-1] - z).detach()).permute(0, 3, 1, 2)
        outputs = self.decoder(self.post_quant_conv(quantized))
        return outputs, codes.view(*z.shape[:3], -1), commitment


def load_flax(model: RQVAE, module, variables) -> None:
    """Loads the variables of a `rq.models.RQVAE` of the same sizes.

    Raises:
      RuntimeError: where names or shapes differ.
    """
    tensors, first = {}, "quantizer.codebooks.0."
    for name, array in convert.to_torch(module, variables).items():
        if name == first + "weight":
            array = array[:-1]  # without the row for padding
        if name.startswith(first):
            name = name.replace(first, "codebook.")
        if not name.startswith("quantizer."):
            tensors[name] = torch.tensor(array)
    model.load_state_dict(tensors, strict=True)


def train_step(model, optimizer, images, commitment_weight=0.25):
    """Takes one step of the optimizer and returns the loss.

    Args:
      model: an `RQVAE` in training mode.
      optimizer: of its parameters.
      images: `[B, image_channels, R, R]` in [-1, 1].
      commitment_weight: of the commitment loss.
    """
    outputs, _, commitment = model(images)
    loss = F.mse_loss(outputs, images) + commitment_weight * commitment
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()
