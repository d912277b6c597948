"""Norms of video features. What looks along time leaks the future and is here for published weights only.

Legend: B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.layout import settled
from mmtok.nn.stream import Causal, Stream


class PositionNorm(nn.LayerNorm):
    """Layer norm over the channels of every position (VidTok): causal."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T, H, W]; a view in channels-last memory."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class FrameNorm(nn.GroupNorm):
    """Group norm over the pixels of every frame (Cosmos, one group): causal."""

    def __init__(self, channels: int, groups: int = 1, eps: float = 1e-6) -> None:
        super().__init__(groups, channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T, H, W]."""
        if not x.shape[2]:
            return x
        frames = settled(x.transpose(1, 2).flatten(0, 1))
        return super().forward(frames).unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


class ClipNorm(Causal):
    """Group norm over all frames of a clip (Open-MAGVIT2, CogVideoX): every frame sees the future.

    per_piece  in a stream, take the statistics of each piece alone, as CogVideoX runs: what comes out depends on how
               the video is cut. Without it streaming is refused.
    """

    def __init__(self, channels: int, groups: int = 32, eps: float = 1e-6, per_piece: bool = False) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps)
        self.per_piece = per_piece

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T, H, W]."""
        if stream is not None and not self.per_piece:
            raise ValueError("this network normalizes over time (ClipNorm): it cannot stream")
        return self.norm(x)


class SpatialNorm3d(Causal):
    """Clip norm whose scale and shift come from the latents at the same place (CogVideoX's decoder).

    The latents are stretched to the size of x; when x has an odd number of frames its first one belongs to the first
    latent alone.
    """

    def __init__(
        self, channels: int, z_channels: int, groups: int = 32, eps: float = 1e-6, per_piece: bool = False
    ) -> None:
        super().__init__()
        self.norm = ClipNorm(channels, groups, eps, per_piece)
        self.scale = nn.Conv3d(z_channels, channels, 1)
        self.shift = nn.Conv3d(z_channels, channels, 1)

    def forward(self, x: Tensor, z: Tensor, stream: Stream | None = None) -> Tensor:
        """x [B, C, T, H, W], z [B, Z, t, h, w] -> [B, C, T, H, W]."""
        # 1x1x1 convolutions commute with copying positions, and there are fewer of them before
        scale, shift = (_stretch(conv(z), x) for conv in (self.scale, self.shift))
        return self.norm(x, stream) * scale + shift


def _stretch(z: Tensor, like: Tensor) -> Tensor:
    """z repeated to the size of `like` [B, *, T, H, W]."""
    frames, size = like.shape[2], list(like.shape[3:])
    if frames > 1 and frames % 2:
        first = F.interpolate(z[:, :, :1], size=[1, *size])
        return torch.cat([first, F.interpolate(z[:, :, 1:], size=[frames - 1, *size])], 2)
    return F.interpolate(z, size=[frames, *size])


