"""The modified discrete cosine transform: as many coefficients as samples, and nothing lost.

Legend: B batch, T samples, M hop, F = T / M frames.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class MDCT(nn.Module):
    """x [B, T] -> float32 [B, F, M], T a multiple of M; `inverse` gives x back (Princen-Bradley, 1986; sine window).

    Frame f spans 2 M samples around samples f M to (f + 1) M. Nothing lies outside the clip: its first and last frame
    hold the half block at the edge alone, so that F frames are enough.
    """

    basis: Tensor
    rise: Tensor

    def __init__(self, hop: int) -> None:
        super().__init__()
        if hop < 2 or hop % 2:
            raise ValueError(f"MDCT.hop must be even, got {hop}")
        self.hop = hop
        n = torch.arange(2 * hop, dtype=torch.float64) + 0.5
        k = torch.arange(hop, dtype=torch.float64) + 0.5
        window = (n * (math.pi / (2 * hop))).sin()
        basis = ((n + hop / 2)[:, None] * k * (math.pi / hop)).cos() * window[:, None] * (2 / hop) ** 0.5
        self.register_buffer("basis", basis.float(), persistent=False)
        # the window over the half block inside the edge
        self.register_buffer("rise", window[hop // 2 : hop].float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Orthonormal coefficients of each frame."""
        half = self.hop // 2
        # what outside the edge makes the folded half block the signal itself
        fold = (1 - self.rise) / (1 - self.rise.square()).sqrt()
        first, last = -(x[:, :half] * fold).flip(1), x[:, -half:].flip(1) * fold
        return torch.cat([first, x, last], 1).unfold(1, 2 * self.hop, self.hop) @ self.basis

    def inverse(self, c: Tensor) -> Tensor:
        """[B, F, M] -> [B, F * M]."""
        halves = (c @ self.basis.T).unflatten(2, (2, self.hop))
        blocks = nn.functional.pad(halves[:, :, 0], (0, 0, 0, 1)) + nn.functional.pad(halves[:, :, 1], (0, 0, 1, 0))
        half = self.hop // 2
        x = blocks.flatten(1)[:, half:-half]
        return torch.cat([x[:, :half] / self.rise, x[:, half:-half], x[:, -half:] / self.rise.flip(0)], 1)
