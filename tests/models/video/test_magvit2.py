import pytest
import torch

from mmtok.models.video.magvit2 import Magvit2Video
from mmtok.nn.magvit3d import MagvitDecoder3d, MagvitEncoder3d
from mmtok.quantizers.lookup_free import LFQ
from mmtok.types import Batch


def make(clip_norm=False):
    torch.manual_seed(0)
    sizes = {"z_channels": 6, "channels": 8, "channel_mult": [1, 2, 1], "num_res_blocks": 1, "groups": 4}
    sizes |= {"strides": [(1, 2), (2, 2)], "clip_norm": clip_norm}
    return Magvit2Video(MagvitEncoder3d(**sizes), LFQ(6), MagvitDecoder3d(**sizes), (5, 16, 16)).eval()


def video(frames, height=16, width=16, seed=0):
    return torch.rand(2, 3, frames, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 17, 9), (5, 12, 20)], ids=str)
@pytest.mark.parametrize("clip_norm", [False, True])
@torch.no_grad()
def test_any_size_round_trips(size, clip_norm):
    tok = make(clip_norm)
    x = video(*size)
    tokens = tok.encode(x)
    assert tokens.shapes == tok.grid_shapes(size) and tok.decode(tokens).shape == x.shape
    assert bool(tok.decode(tokens).isfinite().all())
    torch.testing.assert_close(tok.decode(tokens), tok(Batch.of(x)).x.clamp(-1, 1), atol=1e-5, rtol=0)


@torch.no_grad()
def test_norms_a_frame_make_it_causal_and_an_image_is_frame_0():
    tok, leaking = make(), make(clip_norm=True)
    x = video(9)
    y = x.clone()
    y[:, :, 5:] = 0
    torch.testing.assert_close(tok.latents(y)[:, :, :3], tok.latents(x)[:, :, :3], atol=1e-5, rtol=0)
    assert float((leaking.latents(y) - leaking.latents(x))[:, :, 0].abs().max()) > 1e-3
    torch.testing.assert_close(tok.latents(x[:, :, :1]), tok.latents(x)[:, :, :1], atol=1e-5, rtol=0)
    z = torch.randn(2, 6, 4, 4, 4).sign()
    w = z.clone()
    w[:, :, 2:] *= -1
    torch.testing.assert_close(tok.decoder(w)[:, :, :3], tok.decoder(z)[:, :, :3], atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk", [1, 3, 4, 11])
def test_chunks_equal_the_whole(chunk):
    tok = make()
    x = video(11)
    whole, state = tok.encode(x), tok.stream_state(2)
    codes, shown = [], []
    for index, piece in enumerate(x.split(chunk, 2)):
        last = (index + 1) * chunk >= 11
        tokens, state = tok.encode_chunk(piece, state, last)
        y, state = tok.decode_chunk(tokens, state, last)
        codes.append(tokens.codes)
        shown.append(y)
    assert torch.equal(torch.cat(codes, 2), whole.codes)
    torch.testing.assert_close(torch.cat(shown, 2), tok.decode(whole), atol=1e-5, rtol=0)
