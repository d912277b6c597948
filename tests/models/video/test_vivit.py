import pytest
import torch

from mmtok.models.video.vivit import ViViTDecoder, ViViTEncoder, ViViTTokenizer, cut, join
from mmtok.nn.position_bias import ContinuousBias, WindowBias, alibi_slopes
from mmtok.nn.stream import Stream
from mmtok.nn.vivit import SpatialTransformer, TemporalTransformer, WindowAttention2d
from mmtok.quantizers.lookup_free import LFQ
from mmtok.quantizers.projected import Normalized, Projected
from mmtok.quantizers.vq import VQ
from mmtok.types import Batch

OMNI = {"kinds": "tw", "window": 2, "amplitude": 0.5}
PHENAKI = {"kinds": "tt", "conv": False, "rope": False, "bias": True, "alibi": True}


def make(kind=OMNI, legacy=False, frames=None, patch=(2, 4, 4)):
    torch.manual_seed(0)
    sizes = {"dim": 24, "patch": patch, "temporal": 2, "heads": 2, "head": 8, "legacy_reshape": legacy}
    sizes |= {"frames": frames}
    encoder, decoder = ViViTEncoder(**sizes, **kind), ViViTDecoder(**sizes, **kind)
    if kind is OMNI:
        tok = ViViTTokenizer(encoder, Normalized(VQ(4, 64)), decoder, (5, 16, 16), quant_conv=True)
    else:
        lfq = Projected(LFQ(6, little_endian=False), 24, weight_norm=False)
        tok = ViViTTokenizer(encoder, lfq, decoder, (5, 16, 16), unit_range=True)
    with torch.no_grad():
        for parameter in tok.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return tok.eval()


def video(frames, height=16, width=16, batch=2, seed=0):
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("kind", [OMNI, PHENAKI], ids=["omni", "phenaki"])
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 17, 9), (5, 12, 20), (9, 16, 16)], ids=str)
@torch.no_grad()
def test_any_size_round_trips(kind, size):
    tok = make(kind)
    x = video(*size)
    tokens = tok.encode(x)
    assert tokens.shapes == tok.grid_shapes(size)
    assert tok.decode(tokens).shape == x.shape
    torch.testing.assert_close(tok.decode(tokens), tok(Batch.of(x)).x.clamp(-1, 1), atol=1e-5, rtol=0)
    assert torch.equal(tok.encode(x[1:]).codes, tokens.codes[1:])


@pytest.mark.parametrize("kind", [OMNI, PHENAKI], ids=["omni", "phenaki"])
@torch.no_grad()
def test_the_future_never_changes_earlier_codes_and_an_image_is_frame_0(kind):
    tok = make(kind)
    x = video(9)
    z, recon = tok.latents(x), tok.decode(tok.encode(x))
    for t in range(9):
        y = x.clone()
        y[:, :, t] = 0
        block = (t + 1) // 2
        torch.testing.assert_close(tok.latents(y)[:, :, :block], z[:, :, :block], atol=1e-5, rtol=0)
        assert float((tok.latents(y)[:, :, block] - z[:, :, block]).abs().max()) > 1e-3
    image = tok.encode(x[:, :, 0])  # [B, 3, H, W]
    assert torch.equal(image.codes[:, :, 0], tok.encode(x).codes[:, :, 0])
    torch.testing.assert_close(tok.decode(image)[:, :, 0], recon[:, :, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [OMNI, PHENAKI], ids=["omni", "phenaki"])
@pytest.mark.parametrize("frames", [None, 2])
@pytest.mark.parametrize("chunk", [1, 3, 4, 11])
def test_chunks_equal_the_whole(kind, frames, chunk):
    tok = make(kind, frames=frames)
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


def test_a_window_in_time_keeps_the_memory_of_a_stream_flat():
    net = TemporalTransformer(16, 2, 2, 8, alibi=True, window=3)
    x = torch.randn(1, 12, 2, 2, 16)
    stream, parts, sizes = Stream(), [], []
    for piece in x.split(2, 1):
        parts.append(net(piece, stream))
        tensors = [t for v in stream.memory.values() for t in (v if isinstance(v, tuple) else (v,))]
        sizes.append(sum(t.untyped_storage().nbytes() for t in tensors))
    torch.testing.assert_close(torch.cat(parts, 1), net(x), atol=1e-5, rtol=0)
    assert len(set(sizes[1:])) == 1
    y = x.clone()
    y[:, :3] = 0  # two layers, each reaches 2 frames back by attention and 2 by its convolution
    torch.testing.assert_close(net(y)[:, -1:], net(x)[:, -1:], atol=1e-6, rtol=0)


def test_the_published_reshape_leaks_and_so_refuses_streams():
    tok = make(legacy=True)
    x = video(9)
    y = x.clone()
    y[:, :, -2:] = 0
    assert float((tok.latents(y) - tok.latents(x))[:, :, 0].abs().max()) > 1e-3
    assert not tok.causal
    with pytest.raises(ValueError, match="cannot stream"):
        tok.stream_state()
    with pytest.raises(ValueError, match="cannot stream"):
        tok.encoder.temporal(torch.randn(1, 2, 2, 2, 24), Stream())


def test_windows_see_only_themselves_and_padding_is_never_seen():
    torch.manual_seed(0)
    attention = WindowAttention2d(8, 2, 3)
    x = torch.randn(1, 1, 6, 6, 8)
    y = x.clone()
    y[:, :, 3:, 3:] = 0
    same = (attention(x) == attention(y)).all(-1)[0, 0]
    assert same[:3].all() and same[:, :3].all() and not same[3:, 3:].any()
    small = torch.randn(1, 1, 4, 5, 8)
    for value in (0.0, 5.0):  # what stands in the padding makes no difference: it is put there by the module itself
        attention.norm.bias.fill_(value)
        torch.testing.assert_close(attention(small)[:, :, :3, :3], attention(small[:, :, :3, :3]))


def test_biases_depend_on_the_distance_alone():
    for bias in (WindowBias(2, 4)(), ContinuousBias(8, 2)((4, 4))):
        full = bias.view(2, 4, 4, 4, 4)
        assert torch.equal(full[:, 0, 1, 2, 2], full[:, 1, 2, 3, 3])
        assert not torch.equal(full[:, 0, 1, 2, 2], full[:, 2, 2, 0, 1])
    torch.testing.assert_close(alibi_slopes(8), torch.tensor([2.0**-i for i in range(1, 9)]))
    assert len(alibi_slopes(6)) == 6


def test_joint_training_takes_images_and_videos_in_turn():
    tok = make().train()
    for x in (video(5)[:, :, 0], video(5), video(1)):
        out = tok(Batch.of(x))
        assert out.x.shape == x.shape
        (out.x - x).abs().mean().backward()
    assert tok.encoder.rest.linear.weight.grad.abs().sum() > 0


def test_inflated_stems_start_from_the_image_model():
    tok = make()
    tok.inflate()
    still = video(1).expand(-1, -1, 5, -1, -1)
    first = tok.encoder.first(cut(still[:, :, :1], (1, 4, 4)))
    torch.testing.assert_close(tok.encoder.rest(cut(still[:, :, 1:3], (2, 4, 4))), first, atol=1e-4, rtol=1e-4)
    y = torch.randn(1, 1, 2, 2, 24)
    frame = join(tok.decoder.first(y), (1, 4, 4))
    torch.testing.assert_close(join(tok.decoder.rest(y), (2, 4, 4)), frame.expand(-1, -1, 2, -1, -1))


def test_cut_and_join():
    x = video(4, 8, 12)
    assert torch.equal(join(cut(x, (2, 4, 4)), (2, 4, 4)), x)
    with pytest.raises(ValueError, match="kinds"):
        SpatialTransformer(8, "tx", 2, 4)
