"""PatchGAN: one real/fake logit per overlapping patch (pix2pix, arXiv 1611.07004; as used by VQGAN, arXiv 2012.09841).

Legend: B batch, C channels, H, W pixels, h, w patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PatchGAN(nn.Module):
    """x [B, in_channels, H, W] in [-1, 1] -> logits float [B, 1, h, w]; 70 x 70 pixel patches with 3 layers.

    width   channels after the first convolution; doubled per layer up to 8 times
    layers  convolutions with stride 2
    """

    def __init__(self, width: int = 64, layers: int = 3, in_channels: int = 3) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"discriminator.layers must be at least 1, got {layers}")
        blocks: list[nn.Module] = [nn.Conv2d(in_channels, width, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        channels = width
        for index in range(1, layers + 1):
            wider, stride = width * min(2**index, 8), 2 if index < layers else 1
            # no bias: BatchNorm removes it
            blocks += [nn.Conv2d(channels, wider, 4, stride, 1, bias=False), nn.BatchNorm2d(wider)]
            blocks += [nn.LeakyReLU(0.2, inplace=True)]
            channels = wider
        self.layers = nn.Sequential(*blocks, nn.Conv2d(channels, 1, 4, 1, 1))
        self.layers.apply(_init)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.contiguous(memory_format=torch.channels_last))


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
