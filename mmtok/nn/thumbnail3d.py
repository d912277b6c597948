"""Video networks around a thumbnail: mean colours travel beside the convolutions, which learn only what they lack.

Legend: B batch, T H W video, t h w latent grid, st s strides in time and space, D latent channels.

A small network spends its first thousands of steps on getting colours through a narrow bottleneck. Here the first
three latent channels are the mean colours of each st x s x s block, straight from the pixels, and the decoder adds the
enlarged thumbnail straight to its output. The other channels leave the encoder with unit variance: left free, they
shrink until the codes hold colours alone. It is the video counterpart of `mmtok.models.image.pyramid`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtok.nn.conv3d import DropFront, FrontFrames
from mmtok.nn.conv_video import ConvDecoder3d, ConvEncoder3d
from mmtok.nn.stream import Causal, Stream, run

COLOURS = 3
GAIN = 3.0  # brings colours near unit variance, as the other channels


class ThumbnailEncoder3d(Causal):
    """x [B, 3, 1 + n st, H, W] in [-1, 1] -> z [B, 3 + Z, 1 + n, H / s, W / s]: colours, then what `network` finds.

    network  its first frame stands alone, and all of its change of time is in its stem (as with wavelets), so that
             it never gives out later than the thumbnail
    """

    def __init__(self, network: ConvEncoder3d) -> None:
        super().__init__()
        self.network = network
        self.stride = network.stride
        self.z_channels = COLOURS + network.z_channels
        self.front = FrontFrames(self.stride[0] - 1)
        self.spread = nn.BatchNorm3d(network.z_channels, affine=False)

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """A whole video, or its next frames."""
        exact = self.spread.running_mean.dtype  # type: ignore[union-attr]
        detail = run([self.network], x, stream).to(exact)
        colours = run([self.front], x, stream).to(exact)
        if not detail.shape[2]:
            return torch.cat([detail[:, :COLOURS], detail], 1)
        return torch.cat([F.avg_pool3d(colours, self.stride) * GAIN, self.spread(detail)], 1)


class ThumbnailDecoder3d(Causal):
    """z [B, 3 + Z, 1 + n, h, w], colours first -> x [B, 3, 1 + n st, h s, w s]; at first the thumbnail alone.

    network  [B, 3 + Z, 1 + n, h, w] -> pixels
    """

    def __init__(self, network: ConvDecoder3d) -> None:
        super().__init__()
        self.network = network
        self.stride = network.stride
        self.z_channels = network.z_channels
        self.drop = DropFront(self.stride[0] - 1)
        last = [m for m in network.conv_out.modules() if isinstance(m, nn.Conv3d)][-1]
        nn.init.zeros_(last.weight)
        if last.bias is not None:
            nn.init.zeros_(last.bias)

    def forward(self, z: Tensor, stream: Stream | None = None) -> Tensor:
        """A whole grid, or its next frames; not clamped."""
        colours = z[:, :COLOURS].transpose(1, 2).flatten(0, 1) / GAIN
        large = F.interpolate(colours, scale_factor=float(self.stride[1]), mode="bicubic")
        large = large.unflatten(0, (z.shape[0], z.shape[2])).transpose(1, 2).repeat_interleave(self.stride[0], 2)
        return run([self.network], z, stream) + run([self.drop], large, stream)
