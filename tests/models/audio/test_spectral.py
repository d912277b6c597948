"""The spectral codec, and coding of long signals in pieces with them and with codecs of other kinds."""

from __future__ import annotations

import pytest
import torch

from mmtok.keep import Prefix
from mmtok.models.audio.codec import WaveCodec
from mmtok.models.audio.long import decode_long, encode_long
from mmtok.models.audio.spectral import SpectralDecoder, SpectralEncoder
from mmtok.nn.seanet import SEANetDecoder, SEANetEncoder
from mmtok.quantizers.residual import Residual
from mmtok.quantizers.vq import VQ
from mmtok.taildrop import UniformTail
from mmtok.types import Batch

RATE = 16000


def spectral() -> WaveCodec:
    torch.manual_seed(0)
    books = Residual([VQ(8, 32, ema_decay=0.99) for _ in range(3)])
    encoder = SpectralEncoder(8, width=16, hidden=24, layers=2)
    decoder = SpectralDecoder(8, width=16, hidden=24, slow=1, layers=2)
    return WaveCodec(encoder, books, decoder, RATE, UniformTail(Prefix(1))).eval()


def causal() -> WaveCodec:
    torch.manual_seed(0)
    sizes = {"dim": 8, "n_filters": 4, "ratios": [8, 5, 4, 2], "causal": True, "lstm": 1}
    return WaveCodec(SEANetEncoder(**sizes), VQ(8, 32), SEANetDecoder(**sizes), RATE, end="layers").eval()


def speech(samples: int, batch: int = 1) -> torch.Tensor:
    torch.manual_seed(1)
    return (torch.randn(batch, 1, samples).cumsum(-1) * 0.01).sin() * 0.5


def pieces(x: torch.Tensor, size: int) -> list[torch.Tensor]:
    return list(x[0].split(size, -1))


@pytest.mark.parametrize("samples", [1, 319, 320, 321, 4000, 16000])
def test_any_length_comes_back(samples):
    codec, x = spectral(), speech(samples, 2)
    tokens = codec.encode(x, num_quantizers=2)
    assert tokens.codes.shape == (2, 3, -(-samples // 320)) and not tokens.codes[:, 2].any()
    y = codec.decode(tokens)
    assert y.shape == x.shape and y.isfinite().all()
    alone = codec.decode(codec.encode(x[1:], num_quantizers=2))
    assert torch.allclose(y[1:], alone, atol=1e-4)


def test_reach_is_how_far_a_sample_is_felt():
    codec, x = spectral(), speech(320 * 60)
    z, moved = codec.latents(x), x.clone()
    at = 30
    moved[..., at * 320 : (at + 1) * 320] *= -0.5
    felt = (codec.latents(moved) - z).abs().amax((0, 1)) > 1e-7
    frames = felt.nonzero().flatten()
    assert felt[at] and at - codec.encoder.reach <= frames.min() and frames.max() <= at + codec.encoder.reach

    w = z.clone()
    w[..., at] += 1
    changed = (codec.decoder(w) - codec.decoder(z)).abs().view(-1, 320).amax(1) > 1e-7
    frames = changed.nonzero().flatten()
    assert changed[at] and at - codec.decoder.reach <= frames.min() and frames.max() <= at + codec.decoder.reach


def test_gradients_reach_every_parameter():
    codec = spectral().train()
    batch = Batch.of(speech(3200, 2))
    recon = codec(batch)
    loss = (recon.x - batch.x).square().mean() + sum(recon.losses.values())
    loss.backward()
    missing = [name for name, p in codec.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing


@pytest.mark.parametrize("build", [spectral, causal])
@pytest.mark.parametrize(("samples", "size", "seconds"), [(50001, 7000, 0.4), (16000, 100, 0.5), (6400, 6400, 0.2)])
def test_long_signals_are_coded_as_the_whole(build, samples, size, seconds):
    codec, x = build(), speech(samples)
    depth = 2 if codec.tail else None
    want = codec.encode(x, num_quantizers=depth)
    tokens = encode_long(codec, pieces(x, size), depth, seconds)
    assert torch.equal(tokens.codes, want.codes) and torch.equal(tokens.size, want.size)
    assert float(tokens.bits) == float(want.bits)
    assert torch.equal(tokens.keep[0].expand_as(want.codes), want.keep[0].expand_as(want.codes))
    parts = list(decode_long(codec, tokens, seconds=seconds))
    y = torch.cat(parts, -1)
    assert y.shape[-1] == samples and torch.allclose(y, codec.decode(want)[0], atol=1e-5)
    if samples > 50000:
        assert len(parts) > 3


def test_memory_stays_flat_in_duration():
    codec = spectral()
    seen = []
    codec.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[-1]))
    encode_long(codec, (torch.zeros(1, 5000) for _ in range(100)), 1, seconds=0.5)
    assert max(seen) < 40000 and sum(seen) > 480000


def test_nothing_to_code_is_said():
    for given in ([], [torch.zeros(1, 0)]):
        with pytest.raises(ValueError, match="no samples"):
            encode_long(spectral(), given)


def test_sizes_at_another_rate_follow_the_resampler():
    from mmtok.data.resample import resampled_length

    codec = spectral()
    for rate in (8000, 11025, 44100, 48000):
        for n in (1, 2, 997, 100_003):
            assert codec.media_size((n,), rate) == (resampled_length(n, rate, RATE),)
    assert codec.media_size((7,), None) == (7,)
