"""Periodic activations of audio networks.

Legend: B batch, C channels, T time.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.kernels import activations, reference


def snake(x: Tensor, alpha: Tensor, inverse: Tensor, inplace: bool = False) -> Tensor:
    """x [B, C, T] + inverse sin^2(alpha x), alpha and inverse [1, C, 1]; keeps only x for the backward pass.

    inplace  x may be overwritten, which is done where no gradient is asked for
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype not in activations.TYPES:
        return x + inverse * torch.sin(alpha * x).square()
    if torch.is_grad_enabled() and (x.requires_grad or alpha.requires_grad or inverse.requires_grad):
        return _Snake.apply(x, alpha, inverse)  # type: ignore[no-untyped-call,no-any-return]
    return activations.snake(x, alpha.flatten(), inverse.flatten(), x if inplace else None)


class _Snake(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(x, alpha, inverse)
        return activations.snake(x, alpha.flatten(), inverse.flatten())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, alpha, inverse = ctx.saved_tensors
        # to be differentiated again: only torch's own operators have gradients
        module = reference if torch.is_grad_enabled() else activations
        dx, *factors = module.snake_backward(grad, x, alpha.flatten(), inverse.flatten())
        return dx.to(x.dtype), *(f.view_as(alpha).to(alpha.dtype) for f in factors)


class Snake(nn.Module):
    """x + sin^2(alpha x) / (alpha + 1e-9), one alpha a channel (arXiv 2006.08195); alpha starts at 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        """[B, C, T] -> [B, C, T]."""
        return snake(x, self.alpha, (self.alpha + 1e-9).reciprocal(), inplace)


class SnakeBeta(nn.Module):
    """x + sin^2(e^alpha x) / (e^beta + 1e-9) (BigVGAN, arXiv 2206.04658); alpha and beta start at 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C, T]."""
        alpha, beta = self.alpha.exp()[None, :, None], self.beta.exp()[None, :, None]
        return snake(x, alpha, (beta + 1e-9).reciprocal())


class HalfSnake(nn.Module):
    """Snake on the first half of the channels, leaky ReLU (0.01) on the others (NVIDIA's NanoCodec)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cut = channels // 2
        self.snake = Snake(self.cut)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C, T]."""
        return torch.cat([self.snake(x[:, : self.cut]), F.leaky_relu(x[:, self.cut :], 0.01)], 1)


class AliasFree(nn.Module):
    """An activation at twice the rate, between low-pass filters, so that the overtones it makes do not fold back.

    act  the activation; the filters are Kaiser-windowed sincs of 12 taps, ends are repeated (BigVGAN, section 3.2)
    """

    filter: Tensor

    def __init__(self, act: nn.Module, taps: int = 12) -> None:
        super().__init__()
        self.act = act
        self.register_buffer("filter", half_band_filter(taps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C, T]."""
        channels, taps = x.shape[1], self.filter.shape[0]
        weight = self.filter.to(x.dtype).expand(channels, 1, -1)
        edge = taps // 2 - 1
        up = F.conv_transpose1d(F.pad(x, (edge, edge), mode="replicate"), 2 * weight, stride=2, groups=channels)
        cut = 3 * edge  # two samples for each repeated one, and half of the filter's own length
        y = self.act(up[..., cut : up.shape[-1] - cut])
        return F.conv1d(F.pad(y, (edge, edge + 1), mode="replicate"), weight, stride=2, groups=channels)


def half_band_filter(taps: int) -> Tensor:
    """[taps], sum 1: sinc with its edge at half the band, Kaiser window for a transition of 0.3 cycles a sample.

    The window's shape follows Kaiser's rule: attenuation A from length and transition width, beta from A.
    """
    half = taps // 2
    attenuation = 2.285 * (half - 1) * math.pi * 1.2 + 7.95
    beta = 0.1102 * (attenuation - 8.7) if attenuation > 50 else (
        0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21) if attenuation >= 21 else 0.0
    )
    window = torch.kaiser_window(taps, periodic=False, beta=beta)
    places = torch.arange(taps) - half + 0.5
    response = window * torch.sinc(places / 2)
    return response / response.sum()
