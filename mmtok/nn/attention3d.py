"""Single-head attention over video features: inside a frame, and back in time.

Legend: B batch, C channels, T frames, h w feature map, W window in frames.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmtok.kernels.attention import attention
from mmtok.nn.attention import attend
from mmtok.nn.conv3d import PointConv3d
from mmtok.nn.stream import Causal, Stream


class FrameAttention(nn.Module):
    """Attention over all positions of a frame, added to its input (VidTok, Cosmos)."""

    def __init__(self, channels: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.out = projections(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, h, w] -> [B, C, T, h, w]."""
        if not x.shape[2]:
            return x
        y = self.norm(x)
        q, k, v = (proj(y).permute(0, 2, 3, 4, 1).flatten(2, 3) for proj in (self.q, self.k, self.v))
        y = attention(q, k, v).unflatten(2, x.shape[3:])
        return x + self.out(y.permute(0, 4, 1, 2, 3))


class TimeAttention(Causal):
    """Attention of every position to itself in its own and earlier frames, added to its input (Cosmos).

    window  W: a frame sees itself and W - 1 frames before it, so that a stream remembers no more; None looks back
            without end, and a stream grows with the video. Clips of at most W frames come out alike.
    """

    def __init__(self, channels: int, norm: Callable[[int], nn.Module], window: int | None = 16) -> None:
        super().__init__()
        if window is not None and window < 1:
            raise ValueError(f"time_window must be positive or null, got {window}")
        self.window = window
        self.norm = norm(channels)
        self.q, self.k, self.v, self.out = projections(channels)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """[B, C, T, h, w] -> [B, C, T, h, w]; in a stream the keys and values of W - 1 frames are kept."""
        if not x.shape[2]:
            return x
        y = self.norm(x)
        # positions become the batch: [B, h, w, T, C]
        q, k, v = (proj(y).permute(0, 3, 4, 2, 1) for proj in (self.q, self.k, self.v))
        if stream is not None:
            past = stream.memory.get(self)
            if past is not None:
                k, v = torch.cat([past[0], k], 3), torch.cat([past[1], v], 3)
            first = 0 if self.window is None else max(0, k.shape[3] - self.window + 1)
            stream.memory[self] = (k[:, :, :, first:].clone(), v[:, :, :, first:].clone())
        frames, keys = q.shape[3], k.shape[3]
        behind = torch.arange(keys - frames, keys, device=x.device)[:, None] - torch.arange(keys, device=x.device)
        mask = behind >= 0 if self.window is None else (behind >= 0) & (behind < self.window)
        y = attend(q, k, v, mask)
        return x + self.out(y.permute(0, 4, 3, 1, 2))


def projections(channels: int) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    """Queries, keys, values, output."""
    q, k, v, out = (PointConv3d(channels, channels) for _ in range(4))
    return q, k, v, out
