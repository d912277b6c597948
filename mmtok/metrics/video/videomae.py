"""VideoMAE-v2's encoder (arXiv 2303.16727) under the names of its published weights: features of content-debiased FVD.

Legend: B clips, T frames, N tokens, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VideoMAE(nn.Module):
    """x float [B, 3, T, side, side] in [0, 1] -> mean token after a norm, [B, D]. The defaults are ViT-g/14.

    hidden  width inside the MLPs
    """

    def __init__(
        self, dim: int = 1408, layers: int = 40, heads: int = 16, hidden: int = 6144, patch: int = 14, tubelet: int = 2
    ) -> None:
        super().__init__()
        size = (tubelet, patch, patch)
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv3d(3, dim, size, size)
        self.blocks = nn.ModuleList(Block(dim, heads, hidden) for _ in range(layers))
        self.fc_norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)  # type: ignore[operator, union-attr]
        x = x + waves(x.shape[1], x.shape[2]).to(x)
        for block in self.blocks:
            x = block(x)
        return self.fc_norm(x.mean(1))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = BiasedAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))  # type: ignore[operator, union-attr]


class BiasedAttention(nn.Module):
    """Self-attention whose queries and values have biases, and whose keys have none."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def waves(count: int, dim: int) -> Tensor:
    """float32 [N, D]: position / 10000^(2 floor(j / 2) / D), sines at even and cosines at odd channels j."""
    channels = torch.arange(dim, dtype=torch.float64)
    angles = torch.arange(count, dtype=torch.float64)[:, None] / 10000 ** (2 * (channels // 2) / dim)
    angles[:, 0::2], angles[:, 1::2] = angles[:, 0::2].sin(), angles[:, 1::2].cos()
    return angles.float()
