"""YIN finds the pitch of known tones; word errors are edit distances; networks come through small interfaces."""

import math

import pytest
import torch

from mmtok.metrics.audio.base import Unscorable
from mmtok.metrics.audio.pitch import PitchErrors, yin
from mmtok.metrics.audio.words import SpeakerSimilarity, WordErrors, edits, words


def voice(hertz, seconds=1.0):
    """Ten harmonics, as a voice has them."""
    t = torch.arange(int(16000 * seconds), dtype=torch.float64) / 16000
    return sum(torch.sin(2 * math.pi * hertz * k * t + k) / k for k in range(1, 11)).float() * 0.1


@pytest.mark.parametrize("hertz", [70.0, 110.3, 221.7, 333.0, 480.0])
def test_the_pitch_of_a_tone_within_three_cents(hertz):
    found, voiced = yin(voice(hertz))
    assert bool(voiced.all()) and float((1200 * (found / hertz).log2()).abs().max()) < 3


def test_noise_and_silence_are_unvoiced():
    noise = torch.randn(16000, generator=torch.Generator().manual_seed(0)) * 0.1
    assert not bool(yin(noise)[1].any()) and not bool(yin(torch.zeros(16000))[1].any())
    half = torch.cat([voice(150), torch.zeros(16000)])
    assert float(yin(half)[1].double().mean()) == pytest.approx(0.5, abs=0.05)


def test_errors_are_in_cents_and_in_shares_of_frames():
    score = PitchErrors().score(voice(200), voice(200 * 2 ** (50 / 1200)))
    assert score["f0_yin_rmse_cents"] == pytest.approx(50, abs=2) and score["vuv_yin_error"] == 0
    other = PitchErrors().score(voice(200), torch.zeros(16000))
    assert other == {"vuv_yin_error": 1.0}  # no frame is voiced in both: no value in cents
    with pytest.raises(Unscorable):
        PitchErrors().score(torch.zeros(100), torch.zeros(100))


def test_real_speech_degrades_in_order(clip, degraded):
    clean, little, much = (PitchErrors().score(clip, x) for x in (clip, degraded(clip, 20), degraded(clip, 0)))
    assert clean == {"f0_yin_rmse_cents": 0, "vuv_yin_error": 0}
    assert 0 < little["vuv_yin_error"] < much["vuv_yin_error"]


def test_word_errors_are_edit_distances():
    assert words("It's LATE, isn’t it? (3 times)") == ["it's", "late", "isn't", "it", "3", "times"]
    assert edits(["a", "b", "c"], ["a", "x", "c"]) == 1 and edits([], ["a"]) == 1 and edits(["a", "b"], []) == 2
    assert edits(words("to make a call"), words("make a phone call")) == 2

    class Heard:
        name = "toy"
        calls = 0

        def __call__(self, wave):
            self.calls += 1
            return "to make a call" if float(wave.abs().max()) > 0.5 else "to make call"

    transcriber = Heard()
    metric = WordErrors(transcriber)
    original, other = torch.ones(10), torch.zeros(10)
    assert metric.keys == ("dwer_toy",)
    assert metric.score(original, other) == {"dwer_toy": 0.25} and metric.score(original, original) == {"dwer_toy": 0}
    assert transcriber.calls == 3  # the original is heard once
    transcriber.__class__.__call__ = lambda self, wave: " ... "
    with pytest.raises(Unscorable, match="no words"):
        metric.score(other, original)


def test_speaker_similarity_is_a_cosine():
    class Encoder:
        name = "toy"

        def __call__(self, wave):
            return wave[:2]

    metric = SpeakerSimilarity(Encoder())
    assert metric.score(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]))["speaker_toy"] == pytest.approx(0.5**0.5)
    with pytest.raises(Unscorable):
        metric.score(torch.zeros(2), torch.ones(2))
