"""A small video tokenizer, clips, and a tiny network of clips with random weights."""

from __future__ import annotations

from dataclasses import replace

import torch

from mmtok.keep import BlockDepth
from mmtok.models.video.conv import ConvVideoTokenizer
from mmtok.nn.conv_video import ConvDecoder3d, ConvEncoder3d
from mmtok.nn.video_parts import CosmosParts
from mmtok.quantizers.residual import Residual
from mmtok.quantizers.vq import VQ
from mmtok.taildrop import UniformTail
from mmtok.types import Batch


class TinyClipFeatures:
    """A random projection of small, short clips: another network, so another name."""

    name, dim, frames, biased, about = "tiny", 5, 4, True, "tiny random network"

    def __init__(self) -> None:
        self.weight = torch.randn(3 * 2 * 4 * 4, self.dim, generator=torch.Generator().manual_seed(5)) / 10

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.adaptive_avg_pool3d(clips.float() / 255, (2, 4, 4))
        return (small.flatten(1) @ self.weight).tanh()


def model(frames: int = 9) -> ConvVideoTokenizer:
    torch.manual_seed(0)
    network = {"parts": CosmosParts(4, 2), "z_channels": 4, "channels": 8, "channel_mult": (1, 1), "num_res_blocks": 1,
               "strides": [(1, 2)]}  # fmt: skip
    return ConvVideoTokenizer(
        ConvEncoder3d(**network), Residual([VQ(4, 16) for _ in range(3)]), ConvDecoder3d(**network), (frames, 64, 64),
        12.0, tail=UniformTail(BlockDepth()),
    ).eval()


def clips(count: int = 3) -> Batch:
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 3, 6, 6, generator=g) * 2 - 1
    x = torch.nn.functional.interpolate(coarse, (9, 64, 64), mode="trilinear")
    batch = Batch.of(x, tuple(f"shelf/<clip {i}>" for i in range(count)))
    return replace(batch, rate=torch.full((count,), 12.0, dtype=torch.float64))
