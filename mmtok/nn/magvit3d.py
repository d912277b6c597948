"""Encoder and decoder of MAGVIT-v2's convolutional layout for video (arXiv 2310.05737, as built by Open-MAGVIT2).

Legend: B batch, C channels, T H W video, t h w latent grid, Z channels of the code map.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.conv3d import CausalConv3d
from mmtok.nn.conv_video import Level3d, ResBlock3d, run_levels, total_stride
from mmtok.nn.norm3d import ClipNorm, FrameNorm
from mmtok.nn.resample3d import DepthToSpace3d, StridedDown
from mmtok.nn.stream import Causal, Stream, run

STRIDES = ((1, 2), (2, 2), (2, 2))


class MagvitEncoder3d(Causal):
    """x [B, 3, 1 + n st, H, W] -> z [B, Z, 1 + n, h, w]; no attention, zeros before the first frame.

    strides    (time, space) factors by which each level but the last ends
    clip_norm  norms look at all frames of a clip, as in published weights: the future leaks and nothing streams. Off,
               every frame is normalised alone
    groups     of the norms
    """

    def __init__(
        self, z_channels: int = 18, channels: int = 128, channel_mult: tuple[int, ...] = (1, 2, 2, 4),
        num_res_blocks: int = 4, strides: Sequence[tuple[int, int]] = STRIDES, clip_norm: bool = False,
        groups: int = 32, gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.stride = total_stride(strides, len(channel_mult), 1)
        self.z_channels, self.clip_norm = z_channels, clip_norm
        self.gradient_checkpointing = gradient_checkpointing
        norm = _norm(clip_norm, groups)
        self.conv_in = _conv(3, channels)
        self.levels = nn.ModuleList()
        width = channels
        for i, mult in enumerate(channel_mult):
            wide = channels * mult
            blocks = [_block(width if j == 0 else wide, wide, norm) for j in range(num_res_blocks)]
            width = wide
            self.levels.append(Level3d(blocks, StridedDown(width, *strides[i]) if i < len(strides) else None))
        self.mid = nn.ModuleList(_block(width, width, norm) for _ in range(num_res_blocks))
        self.norm_out = norm(width)
        self.conv_out = nn.Conv3d(width, z_channels, 1)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """A whole video, or its next frames; z of the blocks that are complete."""
        x = run([self.conv_in], x, stream)
        x = run_levels(self.levels, x, stream, self.gradient_checkpointing and self.training)
        x = run([*self.mid, self.norm_out], x, stream)
        return self.conv_out(F.silu(x))


class MagvitDecoder3d(Causal):
    """z [B, Z, 1 + n, h, w] -> x [B, 3, 1 + n st, h s, w s]. Before each level the code map rules a norm.

    Arguments as in `MagvitEncoder3d`, counted from full resolution as there.
    """

    def __init__(
        self, z_channels: int = 18, channels: int = 128, channel_mult: tuple[int, ...] = (1, 2, 2, 4),
        num_res_blocks: int = 4, strides: Sequence[tuple[int, int]] = STRIDES, clip_norm: bool = False,
        groups: int = 32,
    ) -> None:
        super().__init__()
        self.stride = total_stride(strides, len(channel_mult), 1)
        self.z_channels, self.clip_norm = z_channels, clip_norm
        norm = _norm(clip_norm, groups)
        width = channels * channel_mult[-1]
        self.conv_in = _conv(z_channels, width, bias=True)
        self.mid = nn.ModuleList(_block(width, width, norm) for _ in range(num_res_blocks))
        self.adaptive, self.levels = nn.ModuleList(), nn.ModuleList()
        factor = 1
        for i in reversed(range(len(channel_mult))):
            wide = channels * channel_mult[i]
            self.adaptive.append(AdaptiveNorm3d(width, z_channels, factor, clip_norm, groups))
            blocks = [_block(width if j == 0 else wide, wide, norm) for j in range(num_res_blocks)]
            width = wide
            self.levels.append(Level3d(blocks, DepthToSpace3d(width, *strides[i - 1]) if i else None))
            factor *= strides[i - 1][0] if i else 1
        self.norm_out = norm(width)
        self.conv_out = _conv(width, 3, bias=True)

    def forward(self, z: Tensor, stream: Stream | None = None) -> Tensor:
        """A whole grid, or its next frames; not clamped."""
        x = run([self.conv_in, *self.mid], z, stream)
        for adaptive, level in zip(self.adaptive, self.levels, strict=True):
            x = level(adaptive(x, z), stream)
        x = run([self.norm_out], x, stream)
        return run([self.conv_out], F.silu(x), stream)


class AdaptiveNorm3d(nn.Module):
    """Group norm without own parameters whose scale and shift are linear in the code map's deviation and mean.

    factor     frames of x a latent frame stands for (the first latent for one)
    clip_norm  statistics of whole clips; otherwise of every frame, and of the latent frame it comes from
    """

    def __init__(self, channels: int, z_channels: int, factor: int, clip_norm: bool, groups: int = 32) -> None:
        super().__init__()
        self.factor, self.clip_norm = factor, clip_norm
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6, affine=False)
        self.scale = nn.Linear(z_channels, channels)
        self.shift = nn.Linear(z_channels, channels)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x [B, C, T, H, W], z [B, Z, t, h, w] -> [B, C, T, H, W]."""
        if not x.shape[2]:
            return x
        if self.clip_norm:
            flat, normal = z.flatten(2)[:, None], self.norm(x)
        else:
            flat = z.movedim(2, 1).flatten(3)  # [B, t, Z, h w]
            frames = x.transpose(1, 2).flatten(0, 1)
            normal = self.norm(frames).unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)
        # a single position has no spread; the unbiased variance would be NaN there
        variance = flat.var(3) if flat.shape[3] > 1 else torch.zeros_like(flat[..., 0])
        scale = self._frames(self.scale((variance + 1e-6).sqrt()), x.shape[2])
        return normal * scale + self._frames(self.shift(flat.mean(3)), x.shape[2])

    def _frames(self, value: Tensor, count: int) -> Tensor:
        """[B, t, C] -> [B, C, count or 1, 1, 1]: each latent frame's value for all of its frames."""
        if value.shape[1] > 1 or count > 1:
            value = value.repeat_interleave(self.factor, 1)[:, -count:] if not self.clip_norm else value
        return value.transpose(1, 2)[..., None, None]


def _norm(clip_norm: bool, groups: int) -> Callable[[int], nn.Module]:
    return functools.partial(ClipNorm if clip_norm else FrameNorm, groups=groups)


def _conv(in_channels: int, channels: int, bias: bool = False) -> CausalConv3d:
    return CausalConv3d(in_channels, channels, bias=bias, pad_mode="zeros")


def _block(in_channels: int, channels: int, norm: Callable[[int], nn.Module]) -> nn.Module:
    return ResBlock3d(in_channels, channels, _conv, norm, bias=False)
