"""Thumbnails beside video networks: colours go straight through, detail has unit variance, the decoder knows depths."""

import torch
import torch.nn.functional as F

from mmtok.keep import BlockDepth
from mmtok.models.video.conv import ConvVideoTokenizer
from mmtok.nn.conv_video import ConvDecoder3d, ConvEncoder3d
from mmtok.nn.thumbnail3d import GAIN, ThumbnailDecoder3d, ThumbnailEncoder3d
from mmtok.nn.video_parts import LightParts
from mmtok.quantizers.residual import Residual
from mmtok.quantizers.vq import VQ
from mmtok.taildrop import UniformTail
from mmtok.types import Batch

SIZES = {"channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "strides": [(1, 2)]}


def encoder(detail=5):
    torch.manual_seed(0)
    return ThumbnailEncoder3d(ConvEncoder3d(LightParts(), detail, **SIZES))


def decoder(channels=8):
    torch.manual_seed(1)
    return ThumbnailDecoder3d(ConvDecoder3d(LightParts(), channels, **SIZES))


def clip(frames=9, side=32, batch=3):
    return torch.rand(batch, 3, frames, side, side, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_colours_are_the_means_of_blocks_and_the_first_frame_stands_alone():
    x = clip()
    z = encoder().eval()(x)
    assert z.shape == (3, 8, 3, 4, 4)
    torch.testing.assert_close(z[:, :3, 0] / GAIN, F.avg_pool2d(x[:, :, 0], 8))
    torch.testing.assert_close(z[:, :3, 1:] / GAIN, F.avg_pool3d(x[:, :, 1:], (4, 8, 8)))


def test_detail_has_unit_variance_while_training():
    z = encoder().train()(clip())[:, 3:]
    torch.testing.assert_close(z.std((0, 2, 3, 4), correction=0), torch.ones(5), atol=1e-2, rtol=0)
    torch.testing.assert_close(z.mean((0, 2, 3, 4)), torch.zeros(5), atol=1e-5, rtol=0)


def test_an_untrained_decoder_gives_the_thumbnail():
    flat = torch.tensor([0.5, -0.25, 0.0]).view(1, 3, 1, 1, 1).expand(2, 3, 9, 32, 32)
    z = encoder().eval()(flat)
    torch.testing.assert_close(decoder()(z), flat, atol=1e-5, rtol=0)


def test_the_decoder_is_told_how_much_was_sent():
    """Equal latents of other depths decode differently, and a depth changes no frame before its block."""
    tail = UniformTail(BlockDepth())
    books = Residual([VQ(8, 16) for _ in range(4)])
    tok = ConvVideoTokenizer(encoder(), books, decoder(9), (9, 32, 32), tail=tail, show_depth=True).eval()
    torch.nn.init.normal_(tok.decoder.network.conv_out.conv.weight, 0, 0.1)
    x = clip()
    tokens, fewer = tok.encode(x, num_tokens=4), tok.encode(x, num_tokens=[4, 4, 1])
    z = tok.embed(tokens)
    with torch.no_grad():
        full, less = tok.reconstruct(z, tokens), tok.reconstruct(z, fewer)
    assert torch.equal(full[:, :, :5], less[:, :, :5])
    assert float((full - less)[:, :, 5:].abs().max()) > 1e-3
    recon = tok.train()(Batch.of(x))
    recon.x.square().mean().backward()
    assert all(p.grad is not None for p in tok.decoder.parameters())
