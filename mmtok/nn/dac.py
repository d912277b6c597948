"""The convolutional stack of DAC and its relatives: residual units with periodic activations, looking both ways.

Legend: B batch, T samples, D latent channels, F frames = T / stride.

Sources: DAC (arXiv 2306.06546), SNAC (arXiv 2410.14411). `layers` counts as the published packages do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn

from mmtok.nn.seanet import ResidualLSTM
from mmtok.nn.snake import AliasFree, Snake, SnakeBeta
from mmtok.nn.weight_norm import weight_norm
from mmtok.nn.window_attention import WindowAttention
from mmtok.nn.windows import Local, run_in_windows

DILATIONS = (1, 3, 9)
REACH = 3 * sum(DILATIONS)  # of the residual units of a stage


class DACEncoder(nn.Module):
    """x [B, 1, T] -> z [B, D, F], T a multiple of `stride`. Widths double from `width` at every stage.

    strides    of the stages, first stage first
    dim        D; None: the last stage's width
    depthwise  wide kernels act per channel, and the last convolution is a depthwise one without activation (SNAC)
    window     of the attention before the last convolution, None for none (SNAC 32 and 44 kHz)
    alias_free SnakeBeta between low-pass filters in place of Snake (BigCodec)
    lstm       LSTM layers behind the last stage, 0 for none (BigCodec)
    normed     weight normalization; False for weights that were published folded
    """

    channels = 1

    def __init__(
        self, width: int = 64, strides: list[int] | None = None, dim: int | None = None, depthwise: bool = False,
        window: int | None = None, alias_free: bool = False, lstm: int = 0, normed: bool = True,
    ) -> None:
        super().__init__()
        strides = [2, 4, 8, 8] if strides is None else strides
        self.stride = math.prod(strides)
        layers: list[nn.Module] = [_conv(1, width, 7, normed=normed)]
        self.known = [Local(3, Fraction(1), width)]
        for stride in strides:
            layers.append(DownStage(width, stride, depthwise, alias_free, normed))
            self.known.append(Local(REACH + 2 * stride, Fraction(1, stride), width))
            width *= 2
        if lstm:
            layers.append(ResidualLSTM(width, lstm))
        if window is not None:
            layers.append(WindowAttention(width, window))
        self.dim = width if dim is None else dim
        if depthwise:
            layers.append(_conv(width, self.dim, 7, groups=width, normed=normed))
        else:
            layers += [_activation(width, alias_free), _conv(width, self.dim, 3, normed=normed)]
        self.layers = nn.Sequential(*layers)
        self.known += [Local(3, Fraction(1), width)] * (len(layers) - len(self.known))
        self.local = window is None and not alias_free and not lstm

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, T] -> [B, D, F]."""
        return run_in_windows(list(self.layers), x, self.known) if self.local else self.layers(x)


class DACDecoder(nn.Module):
    """z [B, D, F] -> x [B, 1, F * stride]. Widths halve from `width` at every stage.

    output_padding  odd strides give whole strides of samples; without it each loses one sample, as DAC's do
    tanh            bounds the samples; X-Codec's do without
    noise           each stage adds noise scaled by a 1x1 convolution of its signal (SNAC)
    depthwise, window, alias_free, lstm (before the first stage), normed: see the encoder
    """

    channels = 1

    def __init__(
        self, dim: int = 1024, width: int = 1536, strides: list[int] | None = None, depthwise: bool = False,
        window: int | None = None, noise: bool = False, output_padding: bool = False, tanh: bool = True,
        alias_free: bool = False, lstm: int = 0, normed: bool = True,
    ) -> None:
        super().__init__()
        strides = [8, 8, 4, 2] if strides is None else strides
        self.stride = math.prod(strides)
        self.strides = list(strides)
        self.dim = dim
        self.noise = noise
        if depthwise:
            layers = [_conv(dim, dim, 7, groups=dim, normed=normed), _conv(dim, width, 1, normed=normed)]
        else:
            layers = [_conv(dim, width, 7, normed=normed)]
        if window is not None:
            layers.append(WindowAttention(width, window))
        if lstm:
            layers.append(ResidualLSTM(width, lstm))
        self.known = [Local(3, Fraction(1), width)] * len(layers)
        for stride in strides:
            layers.append(UpStage(width, stride, depthwise, noise, output_padding, alias_free, normed))
            largest = max(width, width // 2 * stride)
            self.known.append(Local(2 + math.ceil(REACH / stride), Fraction(stride), largest))
            width //= 2
        self.layers = nn.ModuleList([*layers, _activation(width, alias_free), _conv(width, 1, 7, normed=normed)])
        self.known += [Local(0, Fraction(1), width), Local(3, Fraction(1), width)]
        self.bound = nn.Tanh() if tanh else nn.Identity()
        self.local = window is None and not alias_free and not lstm

    def forward(self, z: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """[B, D, F] -> [B, 1, about F * stride]; noise of `noise_shapes`, None adds none."""
        if not noise and self.local:
            return self.bound(run_in_windows(list(self.layers), z, self.known))  # type: ignore[no-any-return]
        given = iter(noise) if noise else itertools.repeat(None)
        for layer in self.layers:
            z = layer(z, noise=next(given)) if isinstance(layer, UpStage) else layer(z)
        return self.bound(z)

    def noise_shapes(self, frames: int) -> list[tuple[int, int]]:
        """[1, T_i] of each stage's noise, one item."""
        return [(1, frames * math.prod(self.strides[: i + 1])) for i in range(len(self.strides))] if self.noise else []


class ResidualUnit(nn.Module):
    """x + conv1(snake(conv7_dilated(snake(x))))."""

    def __init__(self, width: int, dilation: int, depthwise: bool, alias_free: bool, normed: bool) -> None:
        super().__init__()
        groups = width if depthwise else 1
        self.layers = nn.Sequential(
            _activation(width, alias_free),
            _conv(width, width, 7, dilation=dilation, groups=groups, normed=normed),
            _activation(width, alias_free),
            _conv(width, width, 1, normed=normed),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, T] -> [B, width, T]."""
        return x + self.layers(x)  # type: ignore[no-any-return]


class DownStage(nn.Module):
    """Three residual units, Snake, a convolution of twice the stride that doubles the width."""

    def __init__(self, width: int, stride: int, depthwise: bool, alias_free: bool, normed: bool) -> None:
        super().__init__()
        down = nn.Conv1d(width, 2 * width, 2 * stride, stride, padding=math.ceil(stride / 2))
        self.layers = nn.Sequential(
            *(ResidualUnit(width, dilation, depthwise, alias_free, normed) for dilation in DILATIONS),
            _activation(width, alias_free), weight_norm(down) if normed else down,
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, T] -> [B, 2 * width, T / stride]."""
        return self.layers(x)  # type: ignore[no-any-return]


class UpStage(nn.Module):
    """Snake, a transposed convolution that halves the width, noise where it is asked for, three residual units."""

    def __init__(
        self, width: int, stride: int, depthwise: bool, noise: bool, output_padding: bool, alias_free: bool,
        normed: bool,
    ) -> None:
        super().__init__()
        up = nn.ConvTranspose1d(
            width, width // 2, 2 * stride, stride, padding=math.ceil(stride / 2),
            output_padding=stride % 2 if output_padding else 0,
        )
        width //= 2
        self.layers = nn.ModuleList([
            _activation(2 * width, alias_free), weight_norm(up) if normed else up,
            *([NoiseBlock(width)] if noise else []),
            *(ResidualUnit(width, dilation, depthwise, alias_free, normed) for dilation in DILATIONS),
        ])

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B, width, T] -> [B, width / 2, about T * stride]; noise [B, 1, T * stride]."""
        for layer in self.layers:
            x = layer(x, noise) if isinstance(layer, NoiseBlock) else layer(x)
        return x


class NoiseBlock(nn.Module):
    """x + noise * conv1(x), the convolution without bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = weight_norm(nn.Conv1d(width, width, 1, bias=False))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """x [B, width, T], noise [B, 1, T] or None for none."""
        return x if noise is None else x + noise * self.linear(x)


def seeded_noise(shapes: list[tuple[int, int]], batch: int, seed: int, device: torch.device) -> list[Tensor]:
    """Normal noise [B, 1, T_i] that depends on the seed alone, not on the batch an item is in."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(device).expand(batch, -1, -1) for shape in shapes]


def _activation(width: int, alias_free: bool) -> nn.Module:
    return AliasFree(SnakeBeta(width)) if alias_free else Snake(width)


def _conv(
    inputs: int, outputs: int, kernel: int, dilation: int = 1, groups: int = 1, normed: bool = True
) -> nn.Module:
    padding = (kernel - 1) * dilation // 2
    conv = nn.Conv1d(inputs, outputs, kernel, padding=padding, dilation=dilation, groups=groups)
    return weight_norm(conv) if normed else conv
