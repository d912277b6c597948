"""The parts of published convolutional video tokenizers.

Legend: B batch, C channels, T frames, H W pixels.
"""

from __future__ import annotations

import functools

from torch import nn

from mmtok.nn.attention3d import FrameAttention, TimeAttention
from mmtok.nn.conv3d import CausalConv3d, Chain, DropFront, FactorisedConv3d, FrontFrames, PadMode
from mmtok.nn.conv_video import Parts3d, ResBlock3d
from mmtok.nn.haar3d import HaarPatch3d, HaarUnpatch3d
from mmtok.nn.norm3d import FrameNorm, PositionNorm
from mmtok.nn.resample3d import BlendDown, BlendUp, HybridDown, HybridUp, SubpixelUp


class VidTokParts(Parts3d):
    """VidTok (arXiv 2412.13061): blocks over space, then over time; full 3D blocks and frame attention in the middle.

    The first frame is repeated in front of the clip, so that it fills a block of its own; the decoder drops the copies.

    pad_mode        "zeros" in time (v1.0) or "first_frame" (v1.1)
    look_ahead      v1.1 doubles time by linear interpolation, which looks half a frame ahead: the decoder is then not
                    causal, and a stream comes out late. Off for models of ours
    """

    def __init__(self, pad_mode: PadMode = "first_frame", look_ahead: bool = False) -> None:
        self.pad_mode: PadMode = pad_mode
        self.look_ahead = look_ahead

    def stem(self, time: int) -> nn.Module:
        return FrontFrames(time - 1)

    def head(self, time: int) -> nn.Module:
        return DropFront(time - 1)

    def conv(self, in_channels: int, channels: int) -> nn.Module:
        return CausalConv3d(in_channels, channels, pad_mode=self.pad_mode)

    def norm(self, channels: int) -> nn.Module:
        return PositionNorm(channels)

    def block(self, in_channels: int, channels: int) -> nn.Module:
        space = functools.partial(CausalConv3d, kernel=(1, 3, 3))
        time = functools.partial(CausalConv3d, kernel=(3, 1, 1), pad_mode=self.pad_mode)
        return Chain(
            ResBlock3d(in_channels, channels, space, PositionNorm),
            ResBlock3d(channels, channels, time, PositionNorm, zero_init=True),
        )

    def middle(self, channels: int) -> list[nn.Module]:
        blocks = [ResBlock3d(channels, channels, self.conv, PositionNorm) for _ in range(2)]
        return [blocks[0], FrameAttention(channels, PositionNorm), blocks[1]]

    def down(self, channels: int, time: int, space: int) -> nn.Module:
        return BlendDown(channels, time, space, self.pad_mode)

    def up(self, channels: int, time: int, space: int, index: int) -> nn.Module:
        return BlendUp(channels, time, space, self.pad_mode, 2**index if self.look_ahead else 0)


class CosmosParts(Parts3d):
    """Cosmos tokenizers (arXiv 2501.03575): Haar wavelets, factorised convolutions, norms a frame, attention in the
    middle over space and back in time.

    patch        side of the wavelet blocks
    time_window  latent frames that attention over time sees; published models look back without end (null), but were
                 trained on at most 16 latent frames
    """

    def __init__(self, patch: int = 4, time_window: int | None = 16) -> None:
        self.patch = patch
        self.time_window = time_window

    def stem(self, time: int) -> nn.Module:
        return HaarPatch3d(self.patch)

    def head(self, time: int) -> nn.Module:
        return HaarUnpatch3d(self.patch)

    def conv(self, in_channels: int, channels: int) -> nn.Module:
        return FactorisedConv3d(in_channels, channels)

    def norm(self, channels: int) -> nn.Module:
        return FrameNorm(channels)

    def block(self, in_channels: int, channels: int) -> nn.Module:
        return ResBlock3d(in_channels, channels, FactorisedConv3d, FrameNorm)

    def middle(self, channels: int) -> list[nn.Module]:
        return [
            self.block(channels, channels), FrameAttention(channels, FrameNorm),
            TimeAttention(channels, FrameNorm, self.time_window), self.block(channels, channels),
        ]

    def down(self, channels: int, time: int, space: int) -> nn.Module:
        return HybridDown(channels, time, space)

    def up(self, channels: int, time: int, space: int, index: int) -> nn.Module:
        return HybridUp(channels, time, space)


class LightParts(Parts3d):
    """Parts for few CPU cores: wavelets, convolutions over space alone, and time mixed at the lowest resolution only,
    by convolutions and attention over `time_window` latent frames. All convolutions run as fast 2D kernels.

    patch  side of the wavelet blocks; the only change of size in time
    """

    def __init__(self, patch: int = 4, time_window: int = 8) -> None:
        self.patch = patch
        self.time_window = time_window

    def stem(self, time: int) -> nn.Module:
        return HaarPatch3d(self.patch)

    def head(self, time: int) -> nn.Module:
        return HaarUnpatch3d(self.patch)

    def conv(self, in_channels: int, channels: int) -> nn.Module:
        return CausalConv3d(in_channels, channels, (1, 3, 3))

    def norm(self, channels: int) -> nn.Module:
        return PositionNorm(channels)

    def block(self, in_channels: int, channels: int) -> nn.Module:
        return ResBlock3d(in_channels, channels, self.conv, PositionNorm)

    def middle(self, channels: int) -> list[nn.Module]:
        time = functools.partial(CausalConv3d, kernel=(3, 1, 1))
        before, after = (ResBlock3d(channels, channels, time, PositionNorm, zero_init=True) for _ in range(2))
        return [before, TimeAttention(channels, PositionNorm, self.time_window), after]

    def down(self, channels: int, time: int, space: int) -> nn.Module:
        return CausalConv3d(channels, channels, (1, 4, 4), (1, space, space))

    def up(self, channels: int, time: int, space: int, index: int) -> nn.Module:
        return SubpixelUp(channels, space)
