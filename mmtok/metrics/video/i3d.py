"""Inflated Inception-v1 (I3D, arXiv 1705.07750) for RGB video, under the names of the weights that FVD is taken with.

Legend: B clips, T frames, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Triple = tuple[int, int, int]

# name -> output channels of its six convolutions: 1x1; 1x1, 3x3; 1x1, 3x3; 1x1 behind a pool
MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32), "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64), "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64), "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128), "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}  # fmt: skip
POOLS: dict[str, tuple[Triple, Triple]] = {  # name of the layer in front of which it stands -> kernel, stride
    "Conv3d_2b_1x1": ((1, 3, 3), (1, 2, 2)), "Mixed_3b": ((1, 3, 3), (1, 2, 2)),
    "Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2)),
}  # fmt: skip


class I3D(nn.Module):
    """x float [B, 3, T >= 9, 224, 224] in [-1, 1] -> logits [B, classes], averaged over time."""

    def __init__(self, classes: int = 400) -> None:
        super().__init__()
        self.add_module("Conv3d_1a_7x7", Unit(3, 64, (7, 7, 7), (2, 2, 2)))
        self.add_module("Conv3d_2b_1x1", Unit(64, 64))
        self.add_module("Conv3d_2c_3x3", Unit(64, 192, (3, 3, 3)))
        width = 192
        for name, channels in MIXED.items():
            self.add_module(name, Mixed(width, channels))
            width = channels[0] + channels[2] + channels[4] + channels[5]
        self.logits = nn.Module()
        self.logits.conv3d = nn.Conv3d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        for name, layer in self.named_children():
            if name == "logits":
                continue
            if name in POOLS:
                x = pool(x, *POOLS[name])
            x = layer(x)
        return self.logits.conv3d(F.avg_pool3d(x, (2, 7, 7), 1)).mean((2, 3, 4))  # type: ignore[operator, union-attr]


class Unit(nn.Module):
    """Convolution padded as TensorFlow's SAME, batch norm, ReLU."""

    def __init__(self, in_channels: int, channels: int, kernel: Triple = (1, 1, 1), stride: Triple = (1, 1, 1)) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(in_channels, channels, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.conv3d.kernel_size, self.conv3d.stride
        return F.relu(self.bn(self.conv3d(same(x, kernel, stride))))  # type: ignore[arg-type]


class Mixed(nn.Module):
    """Four branches side by side."""

    def __init__(self, in_channels: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = Unit(in_channels, channels[0])
        self.b1a, self.b1b = Unit(in_channels, channels[1]), Unit(channels[1], channels[2], (3, 3, 3))
        self.b2a, self.b2b = Unit(in_channels, channels[3]), Unit(channels[3], channels[4], (3, 3, 3))
        self.b3b = Unit(in_channels, channels[5])

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pool(x, (3, 3, 3), (1, 1, 1)))]
        return torch.cat(branches, 1)


def same(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """x [B, C, T, H, W] with zeros so that n becomes ceil(n / stride): the smaller half in front."""
    sides: list[int] = []
    for n, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max(k - (n % s or s), 0)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides) if any(sides) else x


def pool(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """Maximum over windows of values that are not negative."""
    return F.max_pool3d(same(x, kernel, stride), kernel, stride)
