"""Attention inside windows of a sequence.

Legend: B batch, C channels, T time, H heads, W window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WindowAttention(nn.Module):
    """x + attention(norm(x)) inside windows of W steps that do not overlap (SNAC, arXiv 2410.14411).

    Heads of 64 channels, rotary positions that restart in every window (halves of the channels are paired), no biases.

    window  W; T must be its multiple
    """

    def __init__(self, channels: int, window: int, head: int = 64) -> None:
        super().__init__()
        if channels % head:
            raise ValueError(f"attention: width {channels} is not a multiple of {head}")
        self.window, self.head = window, head
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C, T]."""
        rows = self.norm(x.transpose(1, 2)).unflatten(1, (-1, self.window))
        q, k, v = self.qkv(rows).unflatten(-1, (3, -1, self.head)).permute(3, 0, 1, 4, 2, 5)
        angles = rotary_angles(torch.arange(self.window, device=x.device), self.head)
        y = F.scaled_dot_product_attention(rotate_halves(q, angles), rotate_halves(k, angles), v)
        return x + self.out(y.transpose(2, 3).flatten(3).flatten(1, 2)).transpose(1, 2)


def rotary_angles(positions: Tensor, head: int, base: float = 10000.0) -> Tensor:
    """float32 [*positions.shape, head / 2]: position / base^(2 i / head) (RoPE, arXiv 2104.09864)."""
    rates = base ** (-torch.arange(0, head, 2, device=positions.device, dtype=torch.float32) / head)
    return positions.float()[..., None] * rates


def rotate_halves(x: Tensor, angles: Tensor) -> Tensor:
    """Rotates channel i with channel i + head / 2; x [..., L, head], angles [L, head / 2]."""
    a, b = x.float().chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)
