import pytest
import torch

from mmtok.bitstream import pack, unpack
from mmtok.keep import BlockPrefix
from mmtok.models.video.elastictok import ElasticDecoder, ElasticEncoder, ElasticTok, from_patches, to_patches
from mmtok.models.video.lengths import BPP, PSNR, psnr
from mmtok.quantizers.fsq import FSQ
from mmtok.taildrop import UniformTail
from mmtok.types import Batch

FRAMES = 2


def make(window=None):
    torch.manual_seed(0)
    sizes = {"frames": FRAMES, "patch": (1, 8, 8), "width": 32, "hidden": 48, "layers": 2, "heads": 2, "window": window}
    quantizer = FSQ([8, 5, 5], margin=-1e-3, tan_shift=True)
    tail = UniformTail(BlockPrefix(), min_length=2)
    tok = ElasticTok(ElasticEncoder(3, **sizes), quantizer, ElasticDecoder(3, **sizes), (4, 16, 16), tail, 2)
    with torch.no_grad():
        for parameter in tok.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return tok.eval()


def video(frames, height=16, width=16, batch=2, seed=0):
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_patches_and_back():
    x = video(4, 16, 24)
    y = to_patches(x, (2, 8, 4), 4)
    assert y.shape == (2, 1, 2 * 2 * 6, 3 * 2 * 8 * 4)
    assert torch.equal(y[0, 0, 0].view(2, 8, 4, 3), x[0, :, :2, :8, :4].permute(1, 2, 3, 0))
    assert torch.equal(from_patches(y, (2, 8, 4), (2, 6)), x)


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 17, 9), (7, 16, 16), (5, 20, 33)], ids=str)
def test_any_size_round_trips(size):
    tok = make()
    x = video(*size)
    tokens = tok.encode(x)
    assert tokens.shapes == tok.grid_shapes(size)
    torch.testing.assert_close(tok.decode(tokens), tok(Batch.of(x)).x.clamp(-1, 1), atol=1e-5, rtol=0)
    assert tok.decode(tokens).shape == x.shape
    if tokens.shapes[0][2] > 3:
        cut = tok.encode(x, num_tokens=3)
        again = unpack(pack(cut[1]), tok)
        assert torch.equal(again.codes, cut[1].codes)
        torch.testing.assert_close(tok.decode(again), tok.decode(cut)[1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [None, 2])
def test_causal_over_blocks_and_chunks_equal_the_whole(window):
    tok = make(window)
    x = video(11)
    whole = tok.encode(x, num_tokens=5)
    y = x.clone()
    y[:, :, 6] = 0
    assert torch.equal(tok.encode(y, num_tokens=5).codes[:, :, :3], whole.codes[:, :, :3])
    recon = tok.decode(whole)
    for chunk in (1, 3, 4, 11):
        state, codes, frames = tok.stream_state(2, 5), [], []
        for index, piece in enumerate(x.split(chunk, 2)):
            tokens, state = tok.encode_chunk(piece, state, last=(index + 1) * chunk >= 11)
            shown, state = tok.decode_chunk(tokens, state)
            codes.append(tokens.codes)
            frames.append(shown)
        assert torch.equal(torch.cat(codes, 2), whole.codes)
        torch.testing.assert_close(torch.cat(frames, 2), recon, atol=1e-5, rtol=0)


def test_a_window_forgets_and_its_memory_stays_flat():
    tok = make(window=2)
    x = video(16)
    y = x.clone()
    y[:, :, :2] = 0  # two layers of window 2 reach two blocks back, not seven
    assert torch.equal(tok.encode(y).codes[:, :, -1], tok.encode(x).codes[:, :, -1])
    state, sizes = tok.stream_state(2), []
    for piece in x.split(2, 2):
        tokens, state = tok.encode_chunk(piece, state)
        kept = [v for v in state.encoder.memory.values() if isinstance(v, tuple)]
        sizes.append(sum(t.untyped_storage().nbytes() for pair in kept for t in pair))
    assert len(set(sizes[1:])) == 1


def test_long_videos_run_block_by_block_without_a_mask_of_their_length(monkeypatch):
    tok = make()
    x = video(8)
    whole = tok.encode(x)
    monkeypatch.setattr("mmtok.nn.block_attention.TOKENS", 4)
    assert torch.equal(tok.encode(x).codes, whole.codes)


def test_the_encoder_knows_what_is_dropped():
    """As published, unlike prefixes elsewhere: the kept codes themselves depend on the length."""
    tok = make()
    full, cut = tok.encode(video(4)), tok.encode(video(4), num_tokens=4)
    assert not torch.equal(full.codes[..., :4], cut.codes[..., :4])


def test_targets_are_met_block_by_block():
    tok = make()
    x = video(6)
    x[1] *= 0.2
    wanted = 3.0
    tokens = tok.encode(x, target=PSNR(wanted))
    lengths = tokens.coding.symbols(tokens.keep, tokens.shapes) + 1
    recon = tok.decode(tokens)
    for item in range(2):
        for block in range(3):
            at = slice(block * FRAMES, (block + 1) * FRAMES)
            reached = float(psnr(x[item : item + 1, :, at], recon[item : item + 1, :, at])) >= wanted
            assert reached or int(lengths[item, block]) == tokens.shapes[0][2]
    rate = tok.encode(x, target=BPP(0.08))
    assert bool((rate.bpp <= 0.08).all())
    with pytest.raises(ValueError, match="bpp is less"):
        tok.encode(x, target="0.001bpp")


def test_lengths_are_drawn_per_block_and_gradients_reach_both_flags():
    tok = make().train()
    out = tok(Batch.of(video(6, batch=8)))
    lengths = out.tokens.coding.symbols(out.tokens.keep, out.tokens.shapes)
    assert len({tuple(row) for row in lengths.tolist()}) > 4
    out.x.square().mean().backward()
    assert tok.encoder.kept.grad.abs().sum() > 0 and tok.encoder.dropped.grad.abs().sum() > 0
