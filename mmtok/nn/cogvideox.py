"""CogVideoX's video VAE (arXiv 2408.06072): 3D residual blocks, group norms over whole pieces, latents in every norm.

Legend: B batch, C channels, T H W video, t h w latent grid, Z latent channels.

The norms see all frames of a piece, so numbers depend on how a video is cut; published pieces are 1 + 8, 8, 8, ...
frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.conv3d import CausalConv3d, PointConv3d
from mmtok.nn.norm3d import ClipNorm, SpatialNorm3d
from mmtok.nn.repeat3d import repeat_space
from mmtok.nn.stream import Causal, Stream


class CogVideoXEncoder(Causal):
    """x [B, 3, 1 + 4 n, H, W] -> means and log variances [B, 2 Z, 1 + n, H / 8, W / 8].

    widths      channels a level; each but the last ends with space halved
    layers      residual blocks a level
    time_steps  how many levels, from the first on, halve time as well
    even_whole  published: in a video of an even number of frames the first does not stand alone
    """

    def __init__(
        self, z_channels: int = 16, widths: Sequence[int] = (128, 256, 256, 512), layers: int = 3, groups: int = 32,
        time_steps: int = 2, even_whole: bool = False,
    ) -> None:
        super().__init__()
        self.z_channels = z_channels
        self.stride = (2**time_steps, 2 ** (len(widths) - 1), 2 ** (len(widths) - 1))
        self.conv_in = CausalConv3d(3, widths[0])
        self.levels = nn.ModuleList()
        width = widths[0]
        for i, wider in enumerate(widths):
            blocks = [CogBlock(width if j == 0 else wider, wider, groups, None) for j in range(layers)]
            width = wider
            down = PooledDown(width, i < time_steps, even_whole) if i < len(widths) - 1 else None
            self.levels.append(CogLevel(blocks, down))
        self.mid = CogLevel([CogBlock(width, width, groups, None) for _ in range(2)], None)
        self.norm_out = ClipNorm(width, groups, per_piece=True)
        self.conv_out = CausalConv3d(width, 2 * z_channels)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """A whole video as one piece, or the next piece."""
        x = self.conv_in(x, stream)
        for level in [*self.levels, self.mid]:
            x = level(x, None, stream)
        return self.conv_out(F.silu(self.norm_out(x, stream)), stream)


class CogVideoXDecoder(Causal):
    """z [B, Z, 1 + n, h, w] -> x [B, 3, 1 + 4 n, 8 h, 8 w]; arguments as in the encoder, one block more a level.

    even_whole  published: an even number of latents decodes to four frames each
    """

    def __init__(
        self, z_channels: int = 16, widths: Sequence[int] = (128, 256, 256, 512), layers: int = 3, groups: int = 32,
        time_steps: int = 2, even_whole: bool = False,
    ) -> None:
        super().__init__()
        self.z_channels = z_channels
        self.stride = (2**time_steps, 2 ** (len(widths) - 1), 2 ** (len(widths) - 1))
        width = widths[-1]
        self.conv_in = CausalConv3d(z_channels, width)
        self.mid = CogLevel([CogBlock(width, width, groups, z_channels) for _ in range(2)], None)
        self.levels = nn.ModuleList()
        for i, wider in enumerate(reversed(widths)):
            blocks = [CogBlock(width if j == 0 else wider, wider, groups, z_channels) for j in range(layers + 1)]
            width = wider
            up = NearestUp(width, i < time_steps, even_whole) if i < len(widths) - 1 else None
            self.levels.append(CogLevel(blocks, up))
        self.norm_out = SpatialNorm3d(width, z_channels, groups, per_piece=True)
        self.conv_out = CausalConv3d(width, 3)

    def forward(self, z: Tensor, stream: Stream | None = None) -> Tensor:
        """A whole grid as one piece, or the next piece; not clamped."""
        x = self.conv_in(z, stream)
        for level in [self.mid, *self.levels]:
            x = level(x, z, stream)
        return self.conv_out(F.silu(self.norm_out(x, z, stream)), stream)


class CogLevel(nn.Module):
    """Residual blocks, then `resample` if given."""

    def __init__(self, blocks: Sequence[nn.Module], resample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resample = resample

    def forward(self, x: Tensor, z: Tensor | None, stream: Stream | None) -> Tensor:
        for block in self.blocks:
            x = block(x, z, stream)
        return x if self.resample is None else self.resample(x, stream)


class CogBlock(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus the input; norms read the latents when there is a `z_channels`."""

    def __init__(self, in_channels: int, channels: int, groups: int, z_channels: int | None) -> None:
        super().__init__()

        def norm(width: int) -> nn.Module:
            if z_channels is None:
                return ClipNorm(width, groups, per_piece=True)
            return SpatialNorm3d(width, z_channels, groups, per_piece=True)

        self.norm1 = norm(in_channels)
        self.conv1 = CausalConv3d(in_channels, channels)
        self.norm2 = norm(channels)
        self.conv2 = CausalConv3d(channels, channels)
        self.shortcut = PointConv3d(in_channels, channels) if in_channels != channels else None

    def forward(self, x: Tensor, z: Tensor | None, stream: Stream | None) -> Tensor:
        """x [B, C, T, H, W] -> [B, C', T, H, W]; z [B, Z, t, h, w] or None."""
        y = self.conv1(F.silu(_normed(self.norm1, x, z, stream)), stream)
        y = self.conv2(F.silu(_normed(self.norm2, y, z, stream)), stream)
        return y + (x if self.shortcut is None else self.shortcut(x))


class PooledDown(Causal):
    """Means of two frames halve time, the first frame standing alone; a strided convolution halves space."""

    def __init__(self, channels: int, time: bool, even_whole: bool) -> None:
        super().__init__()
        self.time, self.even_whole = time, even_whole
        self.conv = CausalConv3d(channels, channels, (1, 3, 3), (1, 2, 2))

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """[B, C, 1 + 2 n, H, W] -> [B, C, 1 + n, H / 2, W / 2]; later pieces have an even number of frames."""
        if self.time:
            alone = _alone(self, x, self.even_whole, stream)
            pairs = x[:, :, alone:].unflatten(2, (-1, 2))
            x = torch.cat([x[:, :, :alone], pairs.mean(3)], 2)
        return self.conv(x)


class NearestUp(Causal):
    """Copies double time, the first frame staying single, and space; a convolution over space follows."""

    def __init__(self, channels: int, time: bool, even_whole: bool) -> None:
        super().__init__()
        self.time, self.even_whole = time, even_whole
        self.conv = CausalConv3d(channels, channels, (1, 3, 3))

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """[B, C, 1 + n, H, W] -> [B, C, 1 + 2 n, 2 H, 2 W]."""
        if self.time:
            alone = _alone(self, x, self.even_whole, stream)
            x = torch.cat([x[:, :, :alone], x[:, :, alone:].repeat_interleave(2, 2)], 2)
        return self.conv(repeat_space(x))


def _alone(owner: nn.Module, x: Tensor, even_whole: bool, stream: Stream | None) -> int:
    """1 where the first frame of x stands alone, 0 in later pieces."""
    if stream is not None:
        begun = owner in stream.memory
        stream.memory[owner] = True
        if begun:
            return 0
    return 0 if even_whole and x.shape[2] % 2 == 0 else 1


def _normed(norm: nn.Module, x: Tensor, z: Tensor | None, stream: Stream | None) -> Tensor:
    return norm(x, stream) if z is None else norm(x, z, stream)
