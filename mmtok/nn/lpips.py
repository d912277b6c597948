"""LPIPS v0.1: learned perceptual distance over VGG16 or AlexNet features (Zhang et al., arXiv 1801.03924).

Legend: B batch, C channels, H, W pixels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from mmtok.weights import backbone, lpips_heads

# VGG: channels of the convolutions between max pools. AlexNet: channels, kernel, stride, padding, and whether a pool
# comes first. Features are read after the last activation of every stage.
_VGG = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_ALEX = ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
_ALEX_POOL = (False, True, True, False, False)


class LPIPS(nn.Module):
    """Distance between images, float32 [B]; 0 for equal images, larger is worse.

    net      "vgg" (the usual loss) or "alex" (the usual metric)
    weights  file or folder to take the weights from; None searches (see `mmtok.weights`)

    Inputs are float [B, 3, H, W] in [-1, 1]. Convolutions follow autocast; normalisation and distances are float32.
    Frozen: parameters take no gradient, inputs do.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: str = "vgg", weights: str | Path | None = None) -> None:
        super().__init__()
        self.net = net
        self.stages = _vgg_stages() if net == "vgg" else _alex_stages()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        for index, head in enumerate(lpips_heads(net, _folder(weights))):
            self.register_buffer(f"head{index}", head.view(1, -1, 1, 1))
        convs = [layer for layer in self.stages.modules() if isinstance(layer, nn.Conv2d)]
        for conv, (weight, bias) in zip(convs, backbone(net, weights), strict=True):
            conv.weight.data.copy_(weight)
            conv.bias.data.copy_(bias)  # type: ignore[union-attr]
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.distance(self.features(x), self.features(y))

    def features(self, x: Tensor) -> list[Tensor]:
        """Unit-length features of the five stages, float32 [B, C_i, H_i, W_i]."""
        if x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"lpips: expected images [B, 3, H, W] in [-1, 1], got {list(x.shape)}")
        x = ((x - self.shift) / self.scale).contiguous(memory_format=torch.channels_last)
        out = []
        for stage in self.stages:
            x = stage(x)
            out.append(_unit(x.float()))
        return out

    def distance(self, x: list[Tensor], y: list[Tensor]) -> Tensor:
        """float32 [B] from two sets of features."""
        terms = [
            ((a - b).square() * getattr(self, f"head{i}")).sum(1).mean((1, 2))
            for i, (a, b) in enumerate(zip(x, y, strict=True))
        ]
        return torch.stack(terms).sum(0)


def _unit(x: Tensor) -> Tensor:
    # clamped before the root: its gradient is infinite at zero, and dead positions are all zero
    return x / (x.square().sum(1, keepdim=True).clamp(min=1e-20).sqrt() + 1e-10)


def _vgg_stages() -> nn.ModuleList:
    stages, channels = nn.ModuleList(), 3
    for index, widths in enumerate(_VGG):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if index else []
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        stages.append(nn.Sequential(*layers))
    return stages


def _alex_stages() -> nn.ModuleList:
    stages, channels = nn.ModuleList(), 3
    for pool, (width, kernel, stride, pad) in zip(_ALEX_POOL, _ALEX, strict=True):
        layers: list[nn.Module] = [nn.MaxPool2d(3, 2)] if pool else []
        layers += [nn.Conv2d(channels, width, kernel, stride, pad), nn.ReLU(inplace=True)]
        stages.append(nn.Sequential(*layers))
        channels = width
    return stages


def _folder(weights: str | Path | None) -> Path | None:
    """A folder may hold the heads as well; a backbone file alone says nothing about them."""
    if weights is None:
        return None
    path = Path(weights).expanduser()
    return path if path.is_dir() and any(path.glob("lpips_*.pth")) else None
