"""HiFi-GAN's residual layers as codec: the encoder and decoder of NVIDIA's audio codecs.

Legend: B batch, C channels, T samples, D latent channels, F frames = T / stride.

Sources: HiFi-GAN (arXiv 2010.05646), NanoCodec (arXiv 2508.05835; NeMo's `HiFiGANEncoder`, `CausalHiFiGANDecoder`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmtok.nn.conv1d import PadMode, SameConv1d, SameConvTranspose1d
from mmtok.nn.snake import HalfSnake

KERNELS, DILATIONS = (3, 7, 11), (1, 3, 5)


class HiFiGANEncoder(nn.Module):
    """x [B, 1, T] -> z [B, D, F], looking both ways. Widths double from `width` at every stage.

    dim       D
    width     channels of the first convolution
    strides   of the stages, first stage first
    pad_mode  how the ends are filled
    """

    channels, causal = 1, False

    def __init__(
        self, dim: int, width: int = 24, strides: list[int] | None = None, pad_mode: PadMode = "replicate"
    ) -> None:
        super().__init__()
        strides = [2, 3, 6, 7, 7] if strides is None else strides
        self.stride, self.dim = math.prod(strides), dim

        def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> SameConv1d:
            return SameConv1d(inputs, outputs, kernel, stride, pad_mode=pad_mode)

        layers: list[nn.Module] = [conv(1, width, 7)]
        for stride in strides:
            layers += [
                ResidualLayer(width, half_snake=False, causal=False, pad_mode=pad_mode), nn.LeakyReLU(0.01),
                conv(width, 2 * width, 2 * stride, stride),
            ]
            width *= 2
        self.layers = nn.Sequential(*layers, nn.LeakyReLU(0.01), conv(width, dim, 7))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, T] -> [B, D, F]."""
        return self.layers(x)


class HiFiGANDecoder(nn.Module):
    """z [B, D, F] -> x [B, 1, F * stride] in [-1, 1]. Widths halve from `width` at every stage.

    strides  of the stages, first stage first
    causal   a sample hears no later frame; zeros stand before the first
    grouped  a transposed convolution has a group for each of its outputs, as NanoCodec's do
    """

    channels = 1

    def __init__(
        self, dim: int, width: int = 864, strides: list[int] | None = None, causal: bool = True, grouped: bool = True
    ) -> None:
        super().__init__()
        strides = [7, 7, 6, 3, 2] if strides is None else strides
        if width % 2 ** len(strides):
            raise ValueError(f"decoder.width must be a multiple of {2 ** len(strides)}, got {width}")
        self.stride, self.dim, self.causal = math.prod(strides), dim, causal
        layers: list[nn.Module] = [SameConv1d(dim, width, 7, causal=causal, pad_mode="constant")]
        for stride in strides:
            outputs = width // 2
            up = SameConvTranspose1d(
                width, outputs, 2 * stride, stride, groups=outputs if grouped else 1, causal=causal
            )
            layers += [HalfSnake(width), up, ResidualLayer(outputs, half_snake=True, causal=causal)]
            width = outputs
        last = SameConv1d(width, 1, 3, causal=causal, pad_mode="constant")
        self.layers = nn.Sequential(*layers, HalfSnake(width), last)

    def forward(self, z: Tensor) -> Tensor:
        """[B, D, F] -> [B, 1, F * stride]."""
        return self.layers(z).clamp(-1, 1)


class ResidualLayer(nn.Module):
    """Mean over kernels 3, 7, 11 of chains of dilated residual blocks: [B, C, T] -> [B, C, T]."""

    def __init__(self, width: int, half_snake: bool, causal: bool, pad_mode: PadMode = "constant") -> None:
        super().__init__()
        self.chains = nn.ModuleList(
            nn.Sequential(*(DilatedBlock(width, k, d, half_snake, causal, pad_mode) for d in DILATIONS))
            for k in KERNELS
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([chain(x) for chain in self.chains]).mean(0)


class DilatedBlock(nn.Module):
    """x + conv(act(conv_dilated(act(x)))): [B, C, T] -> [B, C, T]."""

    def __init__(
        self, width: int, kernel: int, dilation: int, half_snake: bool, causal: bool, pad_mode: PadMode
    ) -> None:
        super().__init__()

        def act() -> nn.Module:
            return HalfSnake(width) if half_snake else nn.LeakyReLU(0.01)

        def conv(dilation: int) -> SameConv1d:
            return SameConv1d(width, width, kernel, dilation=dilation, causal=causal, pad_mode=pad_mode)

        self.layers = nn.Sequential(act(), conv(dilation), act(), conv(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)
