"""PatchGAN with blurred down-sampling, as TiTok and TA-TiTok train against (arXiv 2406.07550; MaskBit, 2409.16211).

Legend: B batch, C channels, H, W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BlurPatchGAN(nn.Module):
    """x [B, in_channels, H, W] in [-1, 1] -> logits float [B, 1, grid, grid].

    width   channels of the stem; stage i has width * 2**(i-1) outputs (the first keeps `width`)
    stages  3x3 convolution, [1, 3, 3, 1] blur with stride 2, GroupNorm(32), LeakyReLU(0.1)
    grid    logits per side, reached by adaptive max pooling
    """

    def __init__(self, width: int = 128, stages: int = 3, grid: int = 16, in_channels: int = 3) -> None:
        super().__init__()
        if width % 32:
            raise ValueError(f"discriminator.width must be a multiple of 32 (GroupNorm), got {width}")
        blocks: list[nn.Module] = [nn.Conv2d(in_channels, width, 5, padding=2), nn.LeakyReLU(0.1)]
        channels = width
        for index in range(stages):
            wider = width * 2 ** max(index - 1, 0) * (2 if index else 1)
            blocks += [nn.Conv2d(channels, wider, 3, padding=1), Blur(), nn.GroupNorm(32, wider), nn.LeakyReLU(0.1)]
            channels = wider
        self.layers = nn.Sequential(
            *blocks, nn.AdaptiveMaxPool2d(grid),
            nn.Conv2d(channels, channels, 1), nn.LeakyReLU(0.1), nn.Conv2d(channels, 1, 5, padding=2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.contiguous(memory_format=torch.channels_last))


class Blur(nn.Module):
    """Depthwise [1, 3, 3, 1] x [1, 3, 3, 1] / 64 filter with stride 2: [B, C, H, W] -> [B, C, ceil(H/2), ceil(W/2)]."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("kernel", (torch.outer(taps, taps) / 64)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        # "same" padding of a kernel of 4 at stride 2: what is missing for ceil(n / 2) outputs, the odd one at the end
        pads = [max((-(-n // 2) - 1) * 2 + 4 - n, 0) for n in x.shape[:1:-1]]
        x = F.pad(x, [side for pad in pads for side in (pad // 2, pad - pad // 2)])
        return F.conv2d(x, self.kernel.to(x.dtype).expand(x.shape[1], -1, -1, -1), stride=2, groups=x.shape[1])
