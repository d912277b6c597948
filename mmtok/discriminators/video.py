"""Discriminators of videos.

Legend: B batch, C channels, T frames, H, W pixels, t, h, w patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PatchGAN3d(nn.Module):
    """x [B, in_channels, T, H, W] in [-1, 1] -> logits float [B, 1, t, h, w], one per overlapping patch.

    PatchGAN (arXiv 1611.07004) with kernels 3 x 4 x 4, so that any T >= 1 will do. 70 x 70 pixels with 3 layers.

    width        channels after the first convolution; doubled per layer up to 8 times
    layers       convolutions that halve space
    time_layers  how many of them, from the second on, halve time as well
    """

    def __init__(self, width: int = 64, layers: int = 3, time_layers: int = 1, in_channels: int = 3) -> None:
        super().__init__()
        if layers < 1 or not 0 <= time_layers < layers:
            raise ValueError(
                f"discriminator: layers must be at least 1 and time_layers below it, got {layers} and {time_layers}"
            )
        kernel, pad = (3, 4, 4), (1, 1, 1)
        blocks: list[nn.Module] = [
            nn.Conv3d(in_channels, width, kernel, (1, 2, 2), pad), nn.LeakyReLU(0.2, inplace=True)
        ]
        channels = width
        for index in range(1, layers + 1):
            wider, space = width * min(2**index, 8), 2 if index < layers else 1
            stride = (2 if index <= time_layers else 1, space, space)
            # no bias: BatchNorm removes it
            blocks += [nn.Conv3d(channels, wider, kernel, stride, pad, bias=False), nn.BatchNorm3d(wider)]
            blocks += [nn.LeakyReLU(0.2, inplace=True)]
            channels = wider
        self.layers = nn.Sequential(*blocks, nn.Conv3d(channels, 1, kernel, 1, pad))
        self.layers.apply(_init)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.contiguous(memory_format=torch.channels_last_3d))


class PerFrame(nn.Module):
    """A discriminator of images that looks at every frame alone: [B, C, T, H, W] -> logits of B T frames (VidTok)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.transpose(1, 2).flatten(0, 1))


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm3d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
