"""Periodic activations of audio networks.

Legend: B batch, C channels, T time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Snake(nn.Module):
    """x + sin^2(alpha x) / (alpha + 1e-9), one alpha a channel (arXiv 2006.08195); alpha starts at 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C, T]."""
        return x + (self.alpha + 1e-9).reciprocal() * torch.sin(self.alpha * x).square()
