"""Residual depth per block of frames: what a short overfit must teach, for every block alone and for all together."""

import math

import pytest
import torch

from mmtok.bitstream import pack, unpack
from mmtok.keep import BlockDepth
from mmtok.models.video.conv import ConvVideoTokenizer
from mmtok.models.video.lengths import BPP, psnr
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


@pytest.fixture(scope="module")
def trained():
    """(clips, tokenizer). Codes of three bits and blocks of many colours: one code cannot tell them apart."""
    coarse = torch.rand(12, 3, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    clips = torch.nn.functional.interpolate(coarse, (9, 16, 16), mode="nearest")
    return clips, overfitted(clips, 60)


def test_longer_prefixes_are_better_after_a_short_overfit(trained):
    clips, tok = trained

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


def by_block(clips, tok, tokens):
    """dB [B, blocks] of what was decoded."""
    decoded = tok.decode(tokens)
    return torch.stack([psnr(clips[:, :, a:b], decoded[:, :, a:b]) for a, b in BLOCKS], 1)


def depths(tokens):
    """int64 [B, blocks]: codes of each block."""
    return tokens.keep[0].expand_as(tokens.codes)[:, :, :, 0, 0].sum(1)


def test_a_quality_is_met_by_the_shortest_depth_of_every_block(trained):
    clips, tok = trained
    for level in (14.0, 17.0, 99.0):
        tokens = tok.encode(clips, target=f"{level}dB")
        chosen, found = depths(tokens), by_block(clips, tok, tokens)
        assert bool(((found >= level - 1e-3) | (chosen == DEPTH)).all())
        for block in range(3):  # one code less would not do
            shorter = chosen.clone()
            shorter[:, block] = (shorter[:, block] - 1).clamp(min=1)
            less = by_block(clips, tok, tok.encode(clips, num_tokens=shorter))[:, block]
            assert bool(((less < level + 1e-3) | (chosen[:, block] == 1)).all())
    assert bool((chosen == DEPTH).all())
    mixed = tok.encode(clips, target=17)
    assert len(set(depths(mixed).flatten().tolist())) > 1
    again = unpack(pack(mixed[3]), tok)
    assert torch.equal(depths(again), depths(mixed[3])) and torch.equal(again.codes, mixed[3].codes)


def test_a_rate_is_never_exceeded_and_spent_where_it_helps(trained):
    clips, tok = trained
    lowest = 3 * (4 * 3 + math.log2(DEPTH)) / (9 * 256)
    for rate in (lowest * 1.001, 0.04, 0.06):
        tokens = tok.encode(clips, target=BPP(rate))
        assert bool((tokens.bpp <= rate + 1e-9).all())
        equal = max((tok.encode(clips, num_tokens=n) for n in range(1, DEPTH + 1)),
                    key=lambda t: float(t.bpp[0]) * (float(t.bpp[0]) <= rate))  # fmt: skip
        assert float((by_block(clips, tok, tokens) - by_block(clips, tok, equal)).mean()) > -0.05
    assert float(tokens.bpp.mean()) > 0.85 * rate and len(set(depths(tokens).flatten().tolist())) > 1
    with pytest.raises(ValueError, match=f"target: 0.01 bpp is less than the shortest blocks cost, {lowest:.5f} bpp"):
        tok.encode(clips, target="0.01bpp")


def test_no_block_looks_at_later_frames(trained):
    clips, tok = trained
    other = clips.clone()
    other[:, :, 5:] = clips.flip(0)[:, :, 5:]
    for target in ("17dB", "0.05bpp"):
        a, b = (depths(tok.encode(x, target=target)) for x in (clips, other))
        assert torch.equal(a[:, :2], b[:, :2]) and not torch.equal(a, b)


def streamed(tok, clips, target, counts):
    """Tokens of a stream in such chunks, as one, and every chunk's."""
    state, parts = tok.stream_state(len(clips), target=target), []
    for index, chunk in enumerate(clips.split(counts, 2)):
        part, state = tok.encode_chunk(chunk, state, last=index == len(counts) - 1)
        parts.append(part)
    return torch.cat([part.codes for part in parts], 2), torch.cat([depths(part) for part in parts], 1), parts


def test_a_stream_chooses_as_the_whole_does(trained):
    clips, tok = trained
    for target in ("14dB", "17dB"):
        whole = tok.encode(clips, target=target)
        for counts in ([9], [1, 4, 4], [2, 0, 6, 1], [7, 2]):
            codes, chosen, _ = streamed(tok, clips, target, counts)
            assert torch.equal(chosen, depths(whole)) and torch.equal(codes, whole.codes)
    cut, _, _ = streamed(tok, clips[:, :, :7, :15, :13], "17dB", [3, 4])
    assert torch.equal(cut, tok.encode(clips[:, :, :7, :15, :13], target="17dB").codes)


def test_a_stream_keeps_to_a_rate_behind_its_first_frame(trained):
    clips, tok = trained
    rate, spent = 0.05, torch.zeros(len(clips), dtype=torch.float64)
    long = torch.cat([clips, clips.flip(2)[:, :, 1:], clips[:, :, 1:]], 2)
    _, chosen, parts = streamed(tok, long, BPP(rate), [1, *[4] * 6])
    for index, depth in enumerate(chosen.T):
        spent += depth * 4 * 3 + math.log2(DEPTH)
        allowed = rate * (1 + 4 * index) * 256
        assert bool((spent <= allowed + 1e-6).all()) or index == 0
    assert bool((chosen[:, 0] == 1).all()) and float(spent.mean()) > 0.75 * allowed and len(parts) == 7
    with pytest.raises(ValueError, match="less than the shortest blocks cost"):
        streamed(tok, clips, "0.001bpp", [9])


def test_mistakes_are_named(trained):
    clips, tok = trained
    with pytest.raises(ValueError, match="give one"):
        tok.stream_state(1, num_tokens=2, target=20)
    with pytest.raises(ValueError, match="give one"):
        tok.encode(clips, num_tokens=2, target=20)
    with pytest.raises(ValueError, match='"32dB" or "0.02bpp"'):
        tok.encode(clips, target="good")
    fixed = ConvVideoTokenizer(tok.encoder, tok.quantizer, tok.decoder, (9, 16, 16), show_depth=True).eval()
    with pytest.raises(ValueError, match="no residual depth per block"):
        fixed.encode(clips, target=20)
