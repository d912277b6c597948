"""What MAGVIT-v2's convolutional layout has of its own (arXiv 2310.05737, as built by Open-MAGVIT2, arXiv 2409.04410).

Legend: B batch, C channels, h w feature map, Z channels of the code map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SymmetricConv2d(nn.Module):
    """Halves h and w: 3x3 convolution with stride 2, padded by one on every side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, h / 2, w / 2]."""
        return self.conv(x)


class DepthToSpace2d(nn.Module):
    """Doubles h and w: 3x3 convolution to 4 C channels, ordered (row, column, C), laid out as 2x2 squares."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, 2 h, 2 w]."""
        y = self.conv(x).unflatten(1, (2, 2, -1))
        return y.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)


class AdaptiveNorm2d(nn.Module):
    """Group norm without own parameters whose scale and shift are linear in the code map's deviation and mean."""

    def __init__(self, channels: int, z_channels: int, groups: int = 32) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6, affine=False)
        self.scale = nn.Linear(z_channels, channels)
        self.shift = nn.Linear(z_channels, channels)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x [B, C, h, w], z [B, Z, h', w'] -> [B, C, h, w]."""
        flat = z.flatten(2)
        # a single position has no spread; the unbiased variance of the publication would be NaN there
        variance = flat.var(2) if flat.shape[2] > 1 else torch.zeros_like(flat[:, :, 0])
        scale = self.scale((variance + 1e-6).sqrt())
        return self.norm(x) * scale[..., None, None] + self.shift(flat.mean(2))[..., None, None]
