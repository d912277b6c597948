"""Changing the size of video features in time and space: VidTok, Cosmos and MAGVIT-v2.

Legend: B batch, C channels, T frames, H W pixels.

`time` and `space` are factors, 1 or 2. In VidTok a clip has T = 2 n frames at every level (its first frame is repeated
in front); in Cosmos and MAGVIT-v2 the first frame stands alone, T = 1 + 2 n.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.conv3d import CausalConv3d, DropFront, PadMode, PointConv3d, Triple, extend
from mmtok.nn.repeat3d import RepeatConv3d, repeat_space, repeat_time
from mmtok.nn.stream import Causal, Stream


class BlendDown(Causal):
    """VidTok: a strided convolution halves space; then time, by a learned blend of a mean and a convolution.

    The mean is over three frames with stride 2, weighted sigmoid(`mix`).
    """

    def __init__(self, channels: int, time: int, space: int, pad_mode: PadMode = "first_frame") -> None:
        super().__init__()
        self.space = CausalConv3d(channels, channels, (1, 3, 3), (1, 2, 2)) if space == 2 else None
        self.time = CausalConv3d(channels, channels, (3, 3, 3), (2, 1, 1), pad_mode=pad_mode) if time == 2 else None
        if time == 2:
            self.mix = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T / time, H / space, W / space]."""
        if self.space is not None:
            x = self.space(x, stream)
        if self.time is None:
            return x
        conv = self.time
        x = extend(conv, x, conv.first, conv.context, 2, conv.pad_mode, stream)
        if not x.shape[2]:
            return x
        # the mean of (2 i - 1, 2 i, 2 i + 1) without a pooling pass in another memory layout
        frames = x.shape[2] - 1
        mean = (x[:, :, 0:frames:2] + x[:, :, 1 : frames + 1 : 2] + x[:, :, 2 : frames + 2 : 2]) / 3
        return torch.lerp(conv.apply_kernel(x, stream), mean, self.mix.sigmoid())


class BlendUp(Causal):
    """VidTok: nearest neighbour and convolution double space; then time, by a learned blend of copy and convolution.

    lookahead  VidTok v1.1 interpolates linearly in time instead of copying, so that a frame sees half a frame of the
               future; the first `lookahead` frames are kept apart. 0 copies, and is causal
    """

    def __init__(
        self, channels: int, time: int, space: int, pad_mode: PadMode = "first_frame", lookahead: int = 0
    ) -> None:
        super().__init__()
        self.space = RepeatConv3d(channels, (1, 3, 3), space=2) if space == 2 else None
        self.time: CausalConv3d | None = None
        self.stretch: LinearTime | None = None
        if time == 2 and lookahead:
            self.time, self.stretch = CausalConv3d(channels, channels, pad_mode=pad_mode), LinearTime(lookahead)
        elif time == 2:
            self.time = RepeatConv3d(channels, (3, 3, 3), time=2, pad_mode=pad_mode)
        if time == 2:
            self.mix = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T time, H space, W space]."""
        if self.space is not None:
            x = self.space(x, stream)
        if self.time is None:
            return x
        if self.stretch is not None:
            x = self.stretch(x, stream)
            return torch.lerp(self.time(x, stream), x, self.mix.sigmoid())
        return torch.lerp(self.time(x, stream), repeat_time(x), self.mix.sigmoid())


class HybridDown(Causal):
    """Cosmos: convolution plus mean halve space, then time; a 1x1x1 convolution follows."""

    def __init__(self, channels: int, time: int, space: int) -> None:
        super().__init__()
        self.space = CausalConv3d(channels, channels, (1, 3, 3), (1, 2, 2)) if space == 2 else None
        self.time = CausalConv3d(channels, channels, (3, 1, 1), (2, 1, 1), first_alone=True) if time == 2 else None
        self.out = PointConv3d(channels, channels)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """[B, C, T, H, W] -> [B, C, 1 + (T - 1) / time, H / space, W / space]."""
        if self.space is not None:
            x = self.space(x, stream) + mean_of_squares(x)
        if self.time is not None:
            conv = self.time
            x = extend(conv, x, conv.first, conv.context, 2, "first_frame", stream)
            if not x.shape[2]:
                return x
            x = conv.apply_kernel(x, stream) + (x[:, :, 1::2] + x[:, :, 2::2]) / 2
        return self.out(x)


class HybridUp(Causal):
    """Cosmos: copies plus convolution double time, the first frame staying single, then space; 1x1x1 follows."""

    def __init__(self, channels: int, time: int, space: int) -> None:
        super().__init__()
        self.time = RepeatConv3d(channels, (3, 1, 1), time=2) if time == 2 else None
        self.space = RepeatConv3d(channels, (1, 3, 3), space=2) if space == 2 else None
        self.drop = DropFront(1)
        self.out = PointConv3d(channels, channels)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """[B, C, T, H, W] -> [B, C, 1 + (T - 1) time, H space, W space]."""
        if self.time is not None:
            # the copy that is dropped has only copies of itself before it
            x = self.drop(self.time(x, stream) + repeat_time(x), stream)
        if self.space is not None:
            x = self.space(x, stream) + repeat_space(x)
        return self.out(x)


class StridedDown(Causal):
    """MAGVIT-v2: one strided 3x3x3 convolution, zeros in front, the first frame standing alone."""

    def __init__(self, channels: int, time: int, space: int, bias: bool = True, pad_mode: PadMode = "zeros") -> None:
        super().__init__()
        stride: Triple = (time, space, space)
        self.conv = CausalConv3d(
            channels, channels, (3, 3, 3), stride, bias=bias, pad_mode=pad_mode, first_alone=True
        )
        if space == 2:  # one zero on every side; of even sizes the one behind is never read
            self.conv.sides = [1, 0, 1, 0, 0, 0]

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """[B, C, T, H, W] -> [B, C, 1 + (T - 1) / time, H / space, W / space]."""
        return self.conv(x, stream)


class DepthToSpace3d(Causal):
    """MAGVIT-v2: 3x3x3 convolution to time * space^2 C channels, ordered (time, row, column, C), laid out as blocks.

    With time 2 the second of the first latent's two frames is dropped, so that it decodes to one frame.
    """

    def __init__(self, channels: int, time: int, space: int, bias: bool = True, pad_mode: PadMode = "zeros") -> None:
        super().__init__()
        self.factors = (time, space)
        self.conv = CausalConv3d(channels, time * space**2 * channels, bias=bias, pad_mode=pad_mode)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """[B, C, T, H, W] -> [B, C, 1 + (T - 1) time, H space, W space]."""
        time, space = self.factors
        first = stream is None or not stream.memory.get(self, False)
        y = self.conv(x, stream).unflatten(1, (time, space, space, -1))
        y = y.permute(0, 4, 5, 1, 6, 2, 7, 3).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        if time == 1 or not y.shape[2]:
            return y
        if stream is not None:
            stream.memory[self] = True
        return torch.cat([y[:, :, :1], y[:, :, 2:]], 2) if first else y


class SubpixelUp(nn.Module):
    """A 1x1x1 convolution to space^2 C channels, laid out as squares: a quarter of the work of a convolution above."""

    def __init__(self, channels: int, space: int) -> None:
        super().__init__()
        self.space = space
        self.conv = PointConv3d(channels, space**2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T, H space, W space]."""
        if not x.shape[2]:
            return x.repeat_interleave(self.space, 3).repeat_interleave(self.space, 4)
        frames = F.pixel_shuffle(self.conv(x).transpose(1, 2).flatten(0, 1), self.space)
        frames = frames.contiguous(memory_format=torch.channels_last)
        return frames.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


class LinearTime(Causal):
    """Linear interpolation to twice the frames, half a frame ahead (VidTok v1.1): not causal.

    apart  the first frames, which are interpolated among themselves
    In a stream the last output frame waits until its right neighbour is known.
    """

    def __init__(self, apart: int = 1) -> None:
        super().__init__()
        self.apart = apart

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """[B, C, T, H, W] -> [B, C, 2 T, H, W]; a stream is one frame behind until its last piece."""
        if stream is None:
            return torch.cat([_linear(x[:, :, : self.apart]), _linear(x[:, :, self.apart :])], 2)
        held, seen = stream.memory.get(self, (x[:, :, :0], 0))
        parts: list[Tensor] = []
        if seen < self.apart:
            held = torch.cat([held, x[:, :, : self.apart - seen]], 2)
            x, seen = x[:, :, self.apart - seen :], seen + min(x.shape[2], self.apart - seen)
            if seen == self.apart or stream.last:
                parts.append(_linear(held))
                held = held[:, :, :0]
        # held: nothing, or the last two frames of the rest; of the second the right half is still to come
        joined = torch.cat([held, x], 2) if seen >= self.apart else held
        if joined.shape[2] and seen >= self.apart:
            doubled = _linear(joined)
            done = 2 * held.shape[2] - 1 if held.shape[2] else 0
            parts.append(doubled[:, :, done : None if stream.last else -1])
            joined = joined[:, :, -2:]
        stream.memory[self] = (joined.clone(), seen)
        return torch.cat(parts, 2) if parts else x[:, :, :0]


def _linear(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B, C, 2 T, H, W], samples at quarter points, ends repeated."""
    if not x.shape[2]:
        return x
    left = torch.cat([x[:, :, :1], x[:, :, :-1]], 2)
    right = torch.cat([x[:, :, 1:], x[:, :, -1:]], 2)
    return torch.stack([0.75 * x + 0.25 * left, 0.75 * x + 0.25 * right], 3).flatten(2, 3)


def mean_of_squares(x: Tensor) -> Tensor:
    """Means of 2 x 2 pixels: [B, C, T, H, W] -> [B, C, T, H / 2, W / 2], zeros beyond an odd edge."""
    frames = x.transpose(1, 2).flatten(0, 1)
    if x.shape[3] % 2 or x.shape[4] % 2:
        frames = F.pad(frames, (0, x.shape[4] % 2, 0, x.shape[3] % 2))
    return F.avg_pool2d(frames, 2).unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)
