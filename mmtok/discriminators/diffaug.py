"""Differentiable augmentation of what a discriminator sees (arXiv 2006.10738).

Legend: B batch, H, W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DiffAug(nn.Module):
    """Brightness, saturation, contrast, shift by up to an eighth, and a grey hole; each per image, with gradients.

    x [B, 3, H, W] in [-1, 1] -> the same shape, in training mode; unchanged in eval mode.

    chance  of each of the three kinds (colour, shift, hole) for a batch
    hole    side of the hole as a share of the image's
    """

    def __init__(self, chance: float = 1.0, hole: float = 0.2) -> None:
        super().__init__()
        if not (0 <= chance <= 1 and 0 <= hole < 1):
            raise ValueError(f"DiffAug: chance and hole are shares, got {chance} and {hole}")
        self.chance, self.hole = chance, hole

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if float(torch.rand(())) < self.chance:
            x = self._colour(x)
        if float(torch.rand(())) < self.chance:
            x = self._shift(x)
        if self.hole and float(torch.rand(())) < self.chance:
            x = self._cut(x)
        return x

    def _colour(self, x: Tensor) -> Tensor:
        light, colour, contrast = torch.rand(3, len(x), 1, 1, 1, device=x.device)
        x = x + light - 0.5
        grey = x.mean(1, keepdim=True)
        x = (x - grey) * (2 * colour) + grey
        mean = x.mean((1, 2, 3), keepdim=True)
        return (x - mean) * (contrast + 0.5) + mean

    def _shift(self, x: Tensor) -> Tensor:
        """Whole pixels, zeros from outside."""
        edges = [(n + 4) // 8 for n in x.shape[2:]]
        padded = F.pad(x, (edges[1], edges[1], edges[0], edges[0]))
        index = []
        for n, edge in zip(x.shape[2:], edges, strict=True):
            start = torch.randint(2 * edge + 1, (len(x), 1), device=x.device)
            index.append(start + torch.arange(n, device=x.device))
        rows = torch.arange(len(x), device=x.device)[:, None, None]
        return padded.movedim(1, -1)[rows, index[0][:, :, None], index[1][:, None, :]].movedim(-1, 1)

    def _cut(self, x: Tensor) -> Tensor:
        inside = torch.ones(len(x), 1, 1, 1, dtype=torch.bool, device=x.device)
        for axis, n in enumerate(x.shape[2:], 2):
            side = int(n * self.hole + 0.5)
            middle = torch.randint(n + 1 - side % 2, (len(x), 1), device=x.device)
            places = torch.arange(n, device=x.device) - middle + side // 2
            shape = [len(x), 1, 1, 1]
            shape[axis] = n
            inside = inside & ((places >= 0) & (places < side)).view(shape)
        return x.masked_fill(inside, 0)
