"""A discriminator on frozen DINO features (StyleGAN-T, arXiv 2301.09515; as VAR's trainers and ImageFolder use it).

Legend: B batch, H, W pixels, C channels, L patches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from mmtok.nn.pretrained import MEAN, STD, read_trunk, trunk_of
from mmtok.weights import WeightFile, require

DINO_SMALL = WeightFile(
    "dino_deitsmall16_pretrain.pth",
    "https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
)
SIDE = 224


class DinoDisc(nn.Module):
    """x [B, 3, H, W] in [-1, 1] -> logits [B, 5 L]: convolutional heads over the patches after 0, 3, 6, 9, 12 blocks.

    The trunk (DINO ViT-S/16) is frozen, and neither saved nor trained; gradients pass it to the image. Larger images
    are cropped to 224 half of the time while training, else resized.

    weights  file or folder of `dino_deitsmall16_pretrain.pth`; None searches (see `mmtok.weights`)
    augment  what is done to real and reconstructed images alike, for example `DiffAug`
    kernel   of the heads' second convolution
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: str | None = None, augment: nn.Module | None = None, kernel: int = 9) -> None:
        super().__init__()
        state = read_trunk(require(DINO_SMALL, weights))
        for key in state:
            if key.endswith("attention.qkv.bias"):  # the keys' bias changes no attention
                width = len(state[key]) // 3
                state[key][width : 2 * width] = 0
        self._trunk = (trunk_of(state, 16),)  # a tuple hides it from nn.Module
        self.augment = augment if augment is not None else nn.Identity()
        depth, width = len(self._trunk[0].blocks), self._trunk[0].width
        self.depths = [0, *(depth * i // 4 for i in range(1, 5))]
        self.heads = nn.ModuleList(_Head(width, kernel) for _ in self.depths)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        trunk = self._trunk[0].to(x.device)
        with torch.autocast(x.device.type, enabled=False):
            y = trunk.embed(self._view((self.augment(x.float()) + 1) / 2))
            logits = []
            for depth in range(len(trunk.blocks) + 1):
                if depth:
                    y = trunk.blocks[depth - 1](y)
                if depth in self.depths:
                    seen = (y[:, 1:] + y[:, :1]).transpose(1, 2)
                    logits.append(self.heads[self.depths.index(depth)](seen).flatten(1))
        return torch.cat(logits, 1)

    def _view(self, x: Tensor) -> Tensor:
        high, wide = x.shape[2:]
        if self.training and min(high, wide) > SIDE and float(torch.rand(())) <= 0.5:
            top, left = int(torch.randint(high - SIDE + 1, ())), int(torch.randint(wide - SIDE + 1, ()))
            x = x[:, :, top : top + SIDE, left : left + SIDE]
        elif (high, wide) != (SIDE, SIDE):
            x = F.interpolate(x, (SIDE, SIDE), mode="area" if high > SIDE else "bicubic")
        return (x - self.mean) / self.std


class _Head(nn.Module):
    """[B, C, L] -> [B, 1, L]."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.first = _Conv(channels, 1)
        self.second = _Conv(channels, kernel)
        self.out = spectral_norm(nn.Conv1d(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.out((x + self.second(x)) * 0.5**0.5)


class _Conv(nn.Module):
    """Circular convolution with spectral norm, batch norm over groups of eight items, leaky ReLU."""

    def __init__(self, channels: int, kernel: int, group: int = 8) -> None:
        super().__init__()
        self.conv = spectral_norm(
            nn.Conv1d(channels, channels, kernel, padding=kernel // 2, padding_mode="circular")
        )
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = torch.cat([F.batch_norm(part, None, None, training=True, eps=1e-6) for part in y.split(self.group)])
        return F.leaky_relu(y * self.weight[:, None] + self.bias[:, None], 0.2)
