"""Residual depth per block of frames: what a short overfit must teach, for every block alone and for all together."""

import torch

from mmtok.keep import BlockDepth
from mmtok.models.video.conv import ConvVideoTokenizer
from mmtok.models.video.lengths import psnr
from mmtok.nn.conv_video import ConvDecoder3d, ConvEncoder3d
from mmtok.nn.thumbnail3d import ThumbnailDecoder3d, ThumbnailEncoder3d
from mmtok.nn.video_parts import LightParts
from mmtok.quantizers.residual import Residual
from mmtok.quantizers.vq import VQ
from mmtok.taildrop import UniformTail
from mmtok.types import Batch

DEPTH, BLOCKS = 5, ((0, 1), (1, 5), (5, 9))


def overfitted(clips, steps):
    """A network of the kind of configs/video/video_tiny.yaml, trained on these clips."""
    torch.manual_seed(0)
    sizes = {"channels": 8, "channel_mult": (1, 1), "num_res_blocks": 1, "strides": [(1, 2)]}
    encoder = ThumbnailEncoder3d(ConvEncoder3d(LightParts(), 5, **sizes))
    decoder = ThumbnailDecoder3d(ConvDecoder3d(LightParts(), 9, **sizes))
    books = Residual([VQ(8, 8, ema_decay=0.9, kmeans_steps=10) for _ in range(DEPTH)])
    tail = UniformTail(BlockDepth())
    tok = ConvVideoTokenizer(encoder, books, decoder, (9, 16, 16), tail=tail, show_depth=True).train()
    optimizer = torch.optim.Adam(tok.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        out = tok(Batch.of(clips))
        ((out.x - clips).square().mean() + 0.25 * out.losses["commit"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return tok.eval()


def test_longer_prefixes_are_better_after_a_short_overfit():
    """Codes of three bits and blocks of many colours: one code cannot tell them apart, so each must add something."""
    coarse = torch.rand(12, 3, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    clips = torch.nn.functional.interpolate(coarse, (9, 16, 16), mode="nearest")
    tok = overfitted(clips, 60)

    def quality(lengths, first=0, last=9):
        decoded = tok.decode(tok.encode(clips, num_tokens=lengths))
        return float(psnr(clips[:, :, first:last], decoded[:, :, first:last]).mean())

    curves = [[quality(depth) for depth in range(1, DEPTH + 1)]]
    for block, (first, last) in enumerate(BLOCKS):  # a block of its own depth among full ones
        asked = [[DEPTH] * block + [depth] + [DEPTH] * (2 - block) for depth in range(1, DEPTH + 1)]
        curves.append([quality(lengths, first, last) for lengths in asked])
    for curve in curves:
        assert all(b >= a - 0.05 for a, b in zip(curve, curve[1:], strict=False)), curves
        assert curve[-1] > curve[0] + 1, curves
