"""Spectral terms: the published values and gradients, padding left out exactly, filters of an independent library."""

import pytest
import torch
import torchaudio
from golden_losses import batch_of, folders, load_golden, near, recon_of

from mmtok.losses import (
    DACSTFT,
    L1,
    CompressedSTFT,
    DACMel,
    EnCodecMel,
    MultiResolutionSTFT,
    SpeechTokenizerMel,
    VocosMel,
)
from mmtok.nn.spectrum import Spectrum, mel_filters

GOLDEN = folders("spectral_losses")


def published(config):
    """Golden name -> our term."""
    rate = config["sample_rate"]

    def msspec(name):
        c = config[name]
        windows = [2**n for n in range(c["range_start"], c["range_end"])]
        keys = ("n_mels", "f_min", "f_max", "normalized", "alphas")
        return EnCodecMel(rate, windows, floor=c["floor_level"], **{key: c[key] for key in keys})

    vocos, mrstft = config["vocos_mel"], config["audiocraft_mrstft"]
    return {
        "dac_mel": DACMel(rate, config["dac_mel"]["window_lengths"], config["dac_mel"]["n_mels"]),
        "bigcodec_mel": DACMel(rate),
        "dac_stft": DACSTFT(config["dac_stft"]["window_lengths"]),
        "dac_l1": L1(),
        "vocos_mel": VocosMel(rate, vocos["n_fft"], vocos["hop_length"], vocos["n_mels"]),
        "audiocraft_msspec": msspec("audiocraft_msspec"),
        "audiocraft_msspec_alphas": msspec("audiocraft_msspec_alphas"),
        "audiocraft_mrstft": MultiResolutionSTFT(mrstft["n_ffts"], mrstft["hop_lengths"], mrstft["win_lengths"]),
    }


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda f: f.parents[1].name)
def test_values_and_gradients_equal_the_published_terms(folder):
    config, _, io = load_golden(folder)
    for name, term in published(config).items():
        fake = io["fake"].clone().requires_grad_()
        value = term(recon_of(fake), batch_of(io["real"]), 0)
        value = value / 10 if name == "audiocraft_mrstft" else value  # its own factor
        torch.testing.assert_close(value.detach(), io[name].view(()), rtol=1e-5, atol=0, msg=name)
        (gradient,) = torch.autograd.grad(value, fake)
        near(gradient[:1], io[f"grad.{name}"], 1e-3)


TERMS = {
    "vocos": lambda: VocosMel(16000, 256, 64, 20),
    "dac": lambda: DACMel(16000, [32, 128], [5, 20]),
    "dac_stft": lambda: DACSTFT([256, 64]),
    "encodec": lambda: EnCodecMel(16000, [64, 256], 16),
    "speechtokenizer": lambda: SpeechTokenizerMel(16000, 256, 60, 20),
    "resolutions": lambda: MultiResolutionSTFT([128, 256], [30, 50], [100, 256]),
    "compressed": lambda: CompressedSTFT([64, 256]),
    "l1": lambda: L1(),
}


@pytest.mark.parametrize("name", TERMS)
def test_padding_changes_nothing(name):
    """Whatever a padded batch holds behind the end of an item, and however long it is, value and gradient stay."""
    torch.manual_seed(0)
    term, lengths = TERMS[name](), [700, 513]
    real, fake = torch.randn(2, 2, 1, 700) * 0.1
    values = []
    for tail, noise in ((0, 0.0), (0, 9.0), (333, float("nan"))):
        x, y = (torch.nn.functional.pad(t, (0, tail)) for t in (real, fake))
        for item, length in enumerate(lengths):
            x[item, :, length:], y[item, :, length:] = noise, -noise
        if noise != noise and name == "l1":
            x, y = x.nan_to_num(), y.nan_to_num()
        y.requires_grad_()
        value = term(recon_of(y), batch_of(x, lengths), 0)
        value.backward()
        assert torch.equal(y.grad[1, :, 513:], torch.zeros_like(y.grad[1, :, 513:]))
        values.append(value.detach())
    torch.testing.assert_close(values[1:], values[:1] * 2, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["vocos", "encodec", "speechtokenizer", "dac_stft", "dac"])
def test_a_batch_of_unequal_lengths_is_the_mean_over_true_frames(name):
    torch.manual_seed(1)
    lengths, real, fake = [640, 384], *(torch.randn(2, 2, 1, 640) * 0.1)
    term = {"dac": lambda: DACMel(16000, [128], [20]), "dac_stft": lambda: DACSTFT([128])}.get(name, TERMS[name])()
    if name == "encodec":
        term = EnCodecMel(16000, [128], 16)
    padded = torch.nn.functional.pad(fake[1:, :, :384], (0, 256))
    together = term(recon_of(torch.cat([fake[:1], padded])), batch_of(real, lengths), 0)
    alone = [
        term(recon_of(fake[i : i + 1, :, :n]), batch_of(real[i : i + 1, :, :n]), 0) for i, n in enumerate(lengths)
    ]
    view = getattr(term, "mel", None) or term.scales[0]
    frames = view.frames(torch.tensor(lengths)).tolist()
    expected = sum(a * n for a, n in zip(alone, frames, strict=True)) / sum(frames)
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", ["htk", "slaney"])
@pytest.mark.parametrize("area", [False, True])
def test_filters_equal_torchaudio(scale, area):
    for rate, n_fft, bands, low, high in ((24000, 1024, 100, 0.0, None), (16000, 512, 23, 64.0, 7000.0)):
        theirs = torchaudio.functional.melscale_fbanks(
            n_fft // 2 + 1, low, high or rate / 2, bands, rate, "slaney" if area else None, scale
        )
        ours = mel_filters(rate, n_fft, bands, low, high, scale, area)
        near(ours, theirs.T, 1e-4)


def test_compressed_stft_equals_its_formula():
    torch.manual_seed(0)
    real, fake = torch.randn(2, 1, 1, 1600)  # so loud that the floor is far below
    window = torch.hann_window(64)
    s, r = (
        torch.stft(x[:, 0], 64, 16, 64, window / window.norm(), return_complex=True) for x in (fake, real)
    )
    sizes = (s.abs().pow(0.3) - r.abs().pow(0.3)).square().mean()
    full = (torch.polar(s.abs().pow(0.3), s.angle()) - torch.polar(r.abs().pow(0.3), r.angle())).abs().square().mean()
    for phase in (0.0, 0.5, 1.0):
        ours = CompressedSTFT([64], phase=phase)(recon_of(fake), batch_of(real), 0)
        torch.testing.assert_close(ours, (1 - phase) * sizes + phase * full, rtol=1e-3, atol=0)


def test_compressed_stft_asks_for_phases():
    """A clip turned upside down: no distance of magnitudes, a large one with phases; finite gradients of silence."""
    torch.manual_seed(0)
    real = torch.randn(1, 1, 1600) * 0.1
    flat, full = (CompressedSTFT(phase=share)(recon_of(-real), batch_of(real), 0) for share in (0.0, 0.5))
    assert flat < 1e-8 and full > 0.1
    silent = torch.zeros(1, 1, 1600, requires_grad=True)
    CompressedSTFT()(recon_of(silent), batch_of(real), 0).backward()
    assert silent.grad.isfinite().all()
    with pytest.raises(ValueError, match="power"):
        CompressedSTFT(power=0.0)


def test_speechtokenizer_mel_equals_its_formula():
    """Reflected by (n_fft - hop) / 2, torchaudio's HTK triangles of equal area."""
    torch.manual_seed(0)
    real, fake = torch.randn(2, 1, 1, 1600) * 0.1
    scale = torchaudio.transforms.MelScale(80, 16000, n_stft=513, norm="slaney", mel_scale="htk")

    def mel(x):
        x = torch.nn.functional.pad(x, (392, 392), mode="reflect")[:, 0]
        s = torch.stft(x, 1024, 240, 1024, torch.hann_window(1024), center=False, return_complex=True)
        return scale(s.abs() + 1e-9).clamp(min=1e-5).log()

    value = SpeechTokenizerMel(16000)(recon_of(fake), batch_of(real), 0)
    torch.testing.assert_close(value, (mel(real) - mel(fake)).abs().mean(), rtol=1e-4, atol=0)


def test_short_clips_and_bfloat16():
    clip = torch.randn(1, 1, 5)
    assert Spectrum(64, 16)(clip).shape == (1, 1, 33, 1)  # shorter than the reflected part
    assert Spectrum(64, 16, padding="fill")(clip).shape == (1, 1, 33, 1)
    x, y = torch.randn(2, 1, 1, 900) * 0.1
    term = DACMel(16000, [128], [20])
    exact = term(recon_of(x), batch_of(y), 0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(term(recon_of(x), batch_of(y), 0), exact)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="DACMel.n_mels: one number a window"):
        DACMel(16000, [32, 64], [5])
    with pytest.raises(ValueError, match=r"VocosMel takes audio .* decoded \[1, 1, 8\]"):
        VocosMel(16000)(recon_of(torch.zeros(1, 1, 8)), batch_of(torch.zeros(1, 1, 9)), 0)
