"""What attention adds to its logits by the distance of two tokens.

Legend: H heads, h w tokens of a frame, W window.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ContinuousBias(nn.Module):
    """A small network from the distance in rows and columns, on a logarithmic scale, to a bias a head (Swin v2)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, dim), nn.Linear(dim, dim), nn.Linear(dim, heads)])

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """float [H, h w, h w]."""
        device = next(self.parameters()).device
        spans = [torch.arange(1 - n, n, device=device) for n in grid]
        apart = torch.stack(torch.meshgrid(*spans, indexing="ij"), -1).float()
        y = apart.sign() * apart.abs().log1p()
        for layer in list(self.layers)[:-1]:
            y = F.leaky_relu(layer(y), 0.1)
        return by_distance(self.layers[-1](y).movedim(-1, 0), grid)


class WindowBias(nn.Module):
    """A table of biases, one a head and distance inside a W x W window (Swin, arXiv 2103.14030)."""

    def __init__(self, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.02)

    def forward(self) -> Tensor:
        """float [H, W W, W W]."""
        side = 2 * self.window - 1
        return by_distance(self.table.T.unflatten(1, (side, side)), (self.window, self.window))


def by_distance(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """values [H, 2 h - 1, 2 w - 1] by query minus key -> [H, h w, h w]."""
    high, wide = grid
    rows, columns = (torch.arange(n, device=values.device) for n in grid)
    down = rows[:, None] - rows + high - 1
    right = columns[:, None] - columns + wide - 1
    full = values[:, down[:, None, :, None], right[None, :, None, :]]  # [H, h, w, h, w]
    return full.flatten(3, 4).flatten(1, 2)


def alibi_slopes(heads: int) -> Tensor:
    """float32 [H]: how fast the bias of each head falls with distance (ALiBi, arXiv 2108.12409)."""

    def powers(n: int) -> list[float]:
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start * start**i for i in range(n)]

    whole = 2 ** math.floor(math.log2(heads))
    return torch.tensor(powers(whole) + powers(2 * whole)[0::2][: heads - whole])
