"""Convolutional encoder and decoder for video: levels of residual blocks and a middle, built from a family's parts.

Legend: B batch, C channels, T H W video, t h w latent grid, Z latent channels.

VidTok and Cosmos (mmtok.nn.video_parts) are points of one design: what their blocks, norms and changes of size look
like is a `Parts3d`; how many there are is plain arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmtok.nn.conv3d import CausalConv3d, PointConv3d
from mmtok.nn.stream import Causal, Stream, run


class Parts3d:
    """What a family builds its networks of; every method makes new modules. Widths are in channels.

    patch  factor by which `stem` shrinks and `head` grows every axis
    """

    patch = 1

    def stem(self, time: int) -> nn.Module:
        """Pixels -> what enters the first convolution; the whole encoder has stride `time`."""
        raise NotImplementedError

    def head(self, time: int) -> nn.Module:
        """What leaves the last convolution -> pixels."""
        raise NotImplementedError

    def conv(self, in_channels: int, channels: int) -> nn.Module:
        """First and last convolution."""
        raise NotImplementedError

    def norm(self, channels: int) -> nn.Module:
        """Norm before the last convolution."""
        raise NotImplementedError

    def block(self, in_channels: int, channels: int) -> nn.Module:
        """Residual block of a level."""
        raise NotImplementedError

    def middle(self, channels: int) -> list[nn.Module]:
        """Layers at the lowest resolution."""
        raise NotImplementedError

    def down(self, channels: int, time: int, space: int) -> nn.Module:
        """Change of size by factors 1 or 2."""
        raise NotImplementedError

    def up(self, channels: int, time: int, space: int, index: int) -> nn.Module:
        """The reverse; `index` counts the doublings of time before it."""
        raise NotImplementedError


class ConvEncoder3d(Causal):
    """x [B, 3, 1 + n st, H, W] -> z [B, Z, 1 + n, H / s, W / s], with stride (st, s, s).

    channels, channel_mult  level i is channels * channel_mult[i] wide
    num_res_blocks          a level
    strides                 (time, space) factors, 1 or 2, by which each level but the last ends
    gradient_checkpointing  recompute each level in the backward pass
    """

    def __init__(
        self, parts: Parts3d, z_channels: int, channels: int = 128, channel_mult: tuple[int, ...] = (1, 2, 4, 4),
        num_res_blocks: int = 2, strides: Sequence[tuple[int, int]] = ((1, 2), (2, 2), (2, 2)), in_channels: int = 3,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.stride = total_stride(strides, len(channel_mult), parts.patch)
        self.z_channels = z_channels
        self.gradient_checkpointing = gradient_checkpointing
        self.stem = parts.stem(self.stride[0])
        self.conv_in = parts.conv(in_channels * parts.patch**3, channels)
        self.levels = nn.ModuleList()
        width = channels
        for i, mult in enumerate(channel_mult):
            blocks = [parts.block(width if j == 0 else channels * mult, channels * mult) for j in range(num_res_blocks)]
            width = channels * mult
            resample = None
            if i < len(strides) and max(strides[i]) > 1:
                resample = parts.down(width, *strides[i])
            self.levels.append(Level3d(blocks, resample))
        self.mid = nn.ModuleList(parts.middle(width))
        self.norm_out = parts.norm(width)
        self.conv_out = parts.conv(width, z_channels)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # as what comes: no copy a call

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """A whole video, or its next frames; z of the blocks that are complete."""
        x = run([self.stem], x, stream).contiguous(memory_format=torch.channels_last_3d)
        x = run([self.conv_in], x, stream)
        x = run_levels(self.levels, x, stream, self.gradient_checkpointing and self.training)
        x = run([*self.mid, self.norm_out], x, stream)
        return run([self.conv_out], _silu(x), stream)


class ConvDecoder3d(Causal):
    """z [B, Z, 1 + n, h, w] -> x [B, 3, 1 + n st, h s, w s].

    Arguments as in `ConvEncoder3d`, `channel_mult` counted from full resolution as there; `levels` and `strides` run
    from the lowest resolution to the highest. Published decoders have one residual block a level more than their
    encoder.
    """

    def __init__(
        self, parts: Parts3d, z_channels: int, channels: int = 128, channel_mult: tuple[int, ...] = (1, 2, 4, 4),
        num_res_blocks: int = 3, strides: Sequence[tuple[int, int]] = ((1, 2), (2, 2), (2, 2)), out_channels: int = 3,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.stride = total_stride(strides, len(channel_mult), parts.patch)
        self.z_channels = z_channels
        self.gradient_checkpointing = gradient_checkpointing
        width = channels * channel_mult[-1]
        self.conv_in = parts.conv(z_channels, width)
        self.mid = nn.ModuleList(parts.middle(width))
        self.levels = nn.ModuleList()
        doublings = 0
        for i, mult in enumerate(reversed(channel_mult)):
            blocks = [parts.block(width if j == 0 else channels * mult, channels * mult) for j in range(num_res_blocks)]
            width = channels * mult
            resample = None
            if i < len(strides) and max(strides[i]) > 1:
                resample = parts.up(width, *strides[i], doublings)
                doublings += strides[i][0] == 2
            self.levels.append(Level3d(blocks, resample))
        self.norm_out = parts.norm(width)
        self.conv_out = parts.conv(width, out_channels * parts.patch**3)
        self.head = parts.head(self.stride[0])
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, z: Tensor, stream: Stream | None = None) -> Tensor:
        """A whole grid, or its next frames; not clamped."""
        x = run([self.conv_in, *self.mid], z.contiguous(memory_format=torch.channels_last_3d), stream)
        x = run_levels(self.levels, x, stream, self.gradient_checkpointing and self.training)
        x = run([self.norm_out], x, stream)
        return run([self.conv_out, self.head], _silu(x), stream)


class Level3d(Causal):
    """Residual blocks at one resolution, then `resample` if given."""

    def __init__(self, blocks: list[nn.Module], resample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resample = resample

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """[B, C, T, H, W] -> [B, C', T', H', W']."""
        x = run(self.blocks, x, stream)
        return x if self.resample is None else run([self.resample], x, stream)


class ResBlock3d(Causal):
    """norm, SiLU, conv, norm, SiLU, conv, plus the input (through a 1x1x1 `shortcut` where the width changes).

    conv  (in, out) -> convolution that keeps the size: 3x3x3, over space or time alone, or factorised
    norm  channels -> norm
    zero_init  the block starts as the identity (VidTok's blocks over time)
    bias  of the shortcut
    """

    def __init__(
        self, in_channels: int, channels: int, conv: Callable[[int, int], nn.Module], norm: Callable[[int], nn.Module],
        zero_init: bool = False, bias: bool = True,
    ) -> None:
        super().__init__()
        self.norm1 = norm(in_channels)
        self.conv1 = conv(in_channels, channels)
        self.norm2 = norm(channels)
        self.conv2 = conv(channels, channels)
        self.shortcut = PointConv3d(in_channels, channels, bias) if in_channels != channels else None
        if zero_init:
            last = [m for m in self.conv2.modules() if isinstance(m, CausalConv3d)][-1].conv
            nn.init.zeros_(last.weight)
            if last.bias is not None:
                nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """[B, C, T, H, W] -> [B, C', T, H, W]."""
        y = run([self.conv1], _silu(run([self.norm1], x, stream)), stream)
        y = run([self.conv2], _silu(run([self.norm2], y, stream)), stream)
        same = x if self.shortcut is None else self.shortcut(x)
        return y + same if torch.is_grad_enabled() or y.dtype != same.dtype else y.add_(same)


def _silu(x: Tensor) -> Tensor:
    """SiLU of what a norm gave, in place where no gradient is asked for: fresh memory costs more than the values."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def run_levels(levels: nn.ModuleList, x: Tensor, stream: Stream | None, recompute: bool) -> Tensor:
    """Levels in turn, each keeping only its input for the backward pass when `recompute`."""
    for level in levels:
        x = checkpoint(level, x, stream, use_reentrant=False) if recompute and x.requires_grad else level(x, stream)
    return x


def total_stride(strides: Sequence[tuple[int, int]], levels: int, patch: int) -> tuple[int, int, int]:
    """(time, space, space) of a whole network; ValueError for factors or a number of them that do not fit."""
    if len(strides) > levels - 1 or any(factor not in (1, 2) for pair in strides for factor in pair):
        raise ValueError(f"strides {[list(s) for s in strides]}: at most {levels - 1} pairs (time, space) of 1 or 2")
    time, space = (patch * math.prod(pair[i] for pair in strides) for i in (0, 1))
    return time, space, space
