"""The codec with an explicit pitch: a vocoder before training, its pulses, its pieces, its gradients."""

from __future__ import annotations

import math

import pytest
import torch

from mmtok.keep import Prefix
from mmtok.models.audio.codec import WaveCodec
from mmtok.models.audio.harmonic import HarmonicDecoder, HarmonicEncoder, pulse_train, read_pitch, smooth
from mmtok.models.audio.long import decode_long, encode_long
from mmtok.nn.spectrum import MelSpectrum
from mmtok.quantizers.residual import Residual
from mmtok.quantizers.split import Product
from mmtok.quantizers.uniform import Uniform
from mmtok.quantizers.vq import VQ
from mmtok.taildrop import UniformTail
from mmtok.types import Batch

RATE, HOP, PITCH = 16000, 640, 320
SMALL = {"width": 16, "hidden": 24, "layers": 1}


def codec() -> WaveCodec:
    torch.manual_seed(0)
    books = Product([Uniform(128), Uniform(128), Residual([VQ(32, 64, ema_decay=0.99) for _ in range(3)])])
    encoder, decoder = HarmonicEncoder(8, **SMALL), HarmonicDecoder(8, slow=1, **SMALL)
    torch.nn.init.normal_(encoder.network.out.weight, 0, 0.05)  # untrained it is silent
    return WaveCodec(encoder, books, decoder, RATE, UniformTail(Prefix(1), min_length=3)).eval()


def speech(seconds: float, hertz: float = 140.0) -> torch.Tensor:
    """[1, 1, T]: vowels of .2 s that alternate with hiss."""
    t = torch.arange(int(seconds * RATE)) / RATE
    phase = 2 * math.pi * hertz * (t + 0.01 * torch.sin(5 * t))
    tone = torch.stack([torch.cos(k * phase) / k for k in range(1, 25)]).sum(0)
    hiss = torch.randn(len(t), generator=torch.Generator().manual_seed(3))
    voiced = (t % 0.4) < 0.2
    return torch.where(voiced, 0.08 * tone, 0.03 * hiss)[None, None]


def test_pulses_have_the_pitch_and_unit_power_and_begin_anew():
    hertz, voiced = torch.full((1, 60), 200.0), torch.ones(1, 60, dtype=torch.bool)
    voiced[:, 20:25] = False
    x = pulse_train(hertz, voiced, PITCH)
    assert not x[:, 20 * PITCH : 25 * PITCH].any()
    for start in (0, 25 * PITCH):
        stretch = x[0, start + PITCH : start + 15 * PITCH]
        assert abs(float(stretch.square().mean()) - 1) < 0.02
        # equal from period to period, peaks where the first sample says
        torch.testing.assert_close(stretch[80:], stretch[:-80], atol=1e-3, rtol=0)
    torch.testing.assert_close(x[:, PITCH : 15 * PITCH], x[:, 26 * PITCH : 40 * PITCH], atol=1e-3, rtol=0)
    spectrum = torch.fft.rfft(x[0, PITCH : PITCH + 3200]).abs()
    assert spectrum.argsort(descending=True)[:5].remainder(40).eq(0).all()  # multiples of 200 Hz at 5 Hz a bin


def test_pitch_survives_its_code():
    u = torch.linspace(0, 1, 50)[None]
    encoder_value = 0.1 - 1 + 1.9 * u
    value = Uniform(128).eval()(encoder_value[:, None]).z[:, 0]
    hertz, voiced = read_pitch(value)
    cents = 1200 * (hertz / (60 * 7**u)).log2().abs()
    assert voiced.all() and cents.max() < 15
    assert not read_pitch(Uniform(128).eval()(torch.full((1, 1, 4), -1.0)).z[:, 0])[1].any()


def test_smoothing_is_a_mean_over_the_width():
    power = torch.rand(1, 3, 257, generator=torch.Generator().manual_seed(0))
    found = smooth(power, torch.tensor([[1.0, 5.0, 4.0]]))
    torch.testing.assert_close(found[:, 0], power[:, 0], atol=1e-5, rtol=0)
    windows = power[0].unfold(1, 5, 1)
    torch.testing.assert_close(found[0, 1, 2:-2], windows[1].mean(1), atol=1e-5, rtol=0)
    halved = windows[2] * torch.tensor([0.5, 1, 1, 1, 0.5])
    torch.testing.assert_close(found[0, 2, 2:-2], halved.sum(1) / 4, atol=1e-5, rtol=0)
    assert smooth(torch.ones(1, 1, 257), torch.tensor([[13.4]])).sub(1).abs().max() < 1e-5  # ends included


@torch.no_grad()
def test_bands_know_nothing_of_the_pitch():
    """Flat voices 130 and 260 Hz high differ by under 1.5 dB in bands whose harmonics are apart."""
    encoder = HarmonicEncoder()
    voices = []
    for hertz in (130.0, 260.0):
        pitch = torch.full((1, 100), hertz)
        x = 0.1 * pulse_train(pitch, pitch > 0, PITCH)
        voices.append(encoder(x[:, None])[0, 2:, 5:-5].reshape(4, 32, -1)[:, 6:28])
    assert (voices[0] - voices[1]).abs().mean() * 3 * 10 / math.log(10) < 1.5


@torch.no_grad()
def test_an_untrained_codec_is_a_vocoder():
    """Unquantized, half of the bands come back within 2 dB, and with the pitch of the original."""
    torch.manual_seed(0)
    encoder, decoder = HarmonicEncoder(), HarmonicDecoder(slow=1, layers=1)
    x = speech(2.4)
    z = encoder(x)
    y = decoder(z)
    mel = MelSpectrum(RATE, 1024, PITCH, 20, power=2.0)
    off = 10 * ((mel(y) + 1e-6) / (mel(x) + 1e-6)).log10().abs()
    assert off.median() < 2
    both = (read_pitch(latents.transpose(1, 2)[..., :2].flatten(1)) for latents in (z, encoder(y)))
    (hertz, before), (again, voiced) = both
    kept = voiced & before
    assert kept.float().mean() > 0.4 and (voiced == before).float().mean() > 0.85
    assert (1200 * (again[kept] / hertz[kept]).log2()).abs().median() < 40


@pytest.mark.parametrize("samples", [1, 319, 320, 321, 4000, 16000])
@torch.no_grad()
def test_any_length_comes_back(samples):
    model, x = codec(), speech(1.0)[..., :samples]
    tokens = model.encode(x, num_quantizers=4)
    assert tokens.codes.shape == (1, 5, -(-samples // HOP)) and not tokens.codes[:, 4].any()
    y = model.decode(tokens)
    assert y.shape == x.shape and y.isfinite().all()
    assert torch.equal(y, model.decode(tokens))  # the noise is that of the codes


def test_codes_feel_no_more_than_the_reach():
    model, x = codec(), speech(2.0)
    z, moved, at = model.latents(x), x.clone(), 25
    moved[..., at * HOP : (at + 1) * HOP] *= -0.5
    felt = (model.latents(moved) - z).abs().amax((0, 1)).gt(1e-6).nonzero().flatten()
    assert len(felt) and at - model.encoder.reach <= felt.min() and felt.max() <= at + model.encoder.reach


def test_gradients_reach_every_parameter_of_the_decoder():
    model = codec().train()
    batch = Batch.of(speech(0.8))
    (model(batch).x - batch.x).square().mean().backward()
    missing = [name for name, p in model.decoder.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing


@torch.no_grad()
def test_long_signals_are_coded_as_the_whole():
    """The phase of pulses goes back to where a voiced stretch began, which lies within the context here."""
    model, x = codec(), speech(6.0)
    want = model.encode(x, num_quantizers=4)
    tokens = encode_long(model, x[0].split(7000, -1), 4, 2.0)
    assert torch.equal(tokens.codes, want.codes)
    y = torch.cat(list(decode_long(model, tokens, seconds=2.0)), -1)
    torch.testing.assert_close(y, model.decode(want)[0], atol=2e-4, rtol=0)
