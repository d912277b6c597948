"""Every metric equals its library on the same arrays, puts clean above noisy speech, counts what it cannot score."""

import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmtok.metrics.audio.base import Scorer, Unscorable, UtteranceMeans
from mmtok.metrics.audio.intrusive import PESQ, SISDR, STOI
from mmtok.metrics.audio.mos import DNSMOS, DistillMOS
from mmtok.metrics.audio.spectral import DACMelDistance, DACSTFTDistance, Mel80Distance
from mmtok.metrics.audio.suite import NAMES, AudioSuite

SCORERS = {
    "distillmos": DistillMOS, "dnsmos": DNSMOS, "pesq": PESQ, "stoi": STOI, "estoi": lambda: STOI(True),
    "si_sdr": SISDR, "mel": lambda: DACMelDistance(16000), "mel80": Mel80Distance, "stft": DACSTFTDistance,
}
LOWER = ("mel", "mel80", "stft")
BLIND = ("dnsmos_sig", "dnsmos_p808")  # hardly sees white noise; sees it unsteadily on one clip


@pytest.fixture(scope="module", params=list(SCORERS))
def scorer(request):
    return SCORERS[request.param]()


def test_clean_is_better_than_a_little_noise_than_much(scorer, clip, degraded):
    rows = [scorer.score(clip, x) for x in (clip, degraded(clip, 20), degraded(clip, 5))]
    for key in scorer.keys:
        assert re.fullmatch("[a-z0-9_]+", key)
        values = [row[key] for row in rows]
        if key not in BLIND:
            assert values == sorted(values, reverse=scorer.name not in LOWER) and len(set(values)) == 3, values


def test_a_perfect_reconstruction_scores_the_best_there_is(clip):
    best = {"pesq_wb": 4.6438, "stoi": 1.0, "estoi": 1.0, "si_sdr": 100.0, "mel_dac": 0, "mel80_16k": 0, "stft_dac": 0}
    for name, make in SCORERS.items():
        if name not in ("distillmos", "dnsmos"):
            for key, value in make().score(clip, clip).items():
                assert value == pytest.approx(best[key], abs=1e-4)


def test_equal_to_the_libraries(clip, degraded):
    from distillmos import ConvTransformerSQAModel
    from pesq import pesq
    from pystoi import stoi
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

    y = degraded(clip, 10)
    arrays = clip.double().numpy(), y.double().numpy()
    with torch.no_grad():
        mos = float(ConvTransformerSQAModel().eval()(y[None]))
    assert DistillMOS().score(clip, y) == {"distillmos": pytest.approx(mos, abs=1e-6)}
    assert PESQ().score(clip, y) == {"pesq_wb": pytest.approx(pesq(16000, clip.numpy(), y.numpy(), "wb"), abs=1e-9)}
    assert STOI().score(clip, y) == {"stoi": pytest.approx(stoi(*arrays, 16000), abs=1e-9)}
    assert STOI(True).score(clip, y) == {"estoi": pytest.approx(stoi(*arrays, 16000, extended=True), abs=1e-9)}
    expected = float(scale_invariant_signal_distortion_ratio(y.double(), clip.double(), zero_mean=True))
    assert SISDR().score(clip, y) == {"si_sdr": pytest.approx(expected, abs=1e-6)}


def test_dnsmos_equals_the_package_on_the_same_arrays():
    # values of speechmos 0.0.1.1 with librosa 0.11, which are too heavy to ask for: 2 s (doubled inside) and 12.5 s
    t = np.arange(32000) / 16000
    voice = 0.3 * np.sin(2 * np.pi * (120 + 20 * np.sin(2 * np.pi * 3 * t)) * t) * (np.sin(2 * np.pi * 2 * t) > 0)
    x = (voice + 0.1 * np.sin(2 * np.pi * 700 * t) * np.sin(2 * np.pi * 5 * t)).astype(np.float32)
    long = np.tile(x, 7)[:200000] * np.linspace(0.2, 1, 200000).astype(np.float32)
    scorer = DNSMOS()
    for wave, (ovrl, sig, bak, p808) in (
        (x, (1.0987733796615045, 1.283638404146321, 1.1983818013002687, 2.0839992)),
        (long, (1.0844576588176136, 1.2205755472726953, 1.1559450976057428, 2.0879955)),
    ):
        found = scorer.score(torch.from_numpy(wave), torch.from_numpy(wave))
        expected = {"dnsmos_ovrl": ovrl, "dnsmos_sig": sig, "dnsmos_bak": bak, "dnsmos_p808": p808}
        assert found == pytest.approx(expected, abs=2e-5)


def test_spectral_distances_equal_the_golden_numbers(golden_spectra):
    io, rate = golden_spectra
    real, fake = io["real"], io["fake"]
    for key, scorer in (("dac_mel", DACMelDistance(rate)), ("dac_stft", DACSTFTDistance())):
        # the golden number is over a batch of two clips of one length: the mean of ours
        values = [next(iter(scorer.score(x[0], y[0]).values())) for x, y in zip(real, fake, strict=True)]
        assert sum(values) / 2 == pytest.approx(float(io[key]), rel=2e-5)


@pytest.fixture(scope="module")
def golden_spectra():
    import json
    from pathlib import Path

    folder = Path(__file__).parents[2] / "golden" / "audio" / "spectral_losses"
    rate = json.loads((folder / "config.json").read_text())["sample_rate"]
    return load_file(folder / "io.safetensors"), rate


def test_what_cannot_be_scored_is_counted_named_and_left_out_of_the_mean(clip, degraded):
    silence, click = torch.zeros(16000), torch.cat([torch.zeros(4000), clip[8000:8800], torch.zeros(200)])
    y = degraded(clip, 10)
    for scorer, key in ((PESQ(), "pesq_wb"), (STOI(), "stoi"), (SISDR(), "si_sdr")):
        mean = UtteranceMeans(scorer)
        assert mean.update("quiet", silence, silence) == {}
        value = mean.update("good", clip, y)[key]
        assert mean.compute() == {key: value} and mean.failed() == {key: 1}
        assert [(f.metric, f.utterance) for f in mean.failures] == [(key, "quiet")] and mean.failures[0].reason
    for scorer, reference, found in ((PESQ(), clip[:1000], clip[:1000]), (STOI(), click, click),
                                     (PESQ(), clip, torch.zeros_like(clip)), (SISDR(), clip, torch.zeros_like(clip)),
                                     (DistillMOS(), clip[:100], clip[:100]), (DNSMOS(), clip[:0], clip[:0])):
        with pytest.raises(Unscorable):
            scorer.score(reference, found)


def test_a_key_without_a_value_fails_alone():
    class Two(Scorer):
        name, keys = "two", ("a", "b")

        def score(self, reference, degraded):
            return {"a": 1.0, "b": float("nan")}

    left, right = UtteranceMeans(Two()), UtteranceMeans(Two())
    assert left.update("x", torch.zeros(1), torch.zeros(1)) == {"a": 1.0}
    right.update("y", torch.zeros(1), torch.zeros(1))
    left.merge(right)
    assert left.compute() == {"a": 1.0} and left.failed() == {"b": 2}


def test_names_are_checked_and_missing_weights_are_explained(monkeypatch, tmp_path):
    for name in ("TORCH_HOME", "HF_HOME", "MMTOK_WEIGHTS_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    with pytest.raises(ValueError, match="expected some of distillmos.*got visqol"):
        AudioSuite(("pesq", "visqol"), 16000)
    with pytest.raises(ValueError, match="got none"):
        AudioSuite((), 16000)
    with pytest.raises(ValueError, match="UTMOS22 strong was not found"):
        AudioSuite(("utmos",), 16000)
    with pytest.raises(ValueError, match="faster-whisper-tiny.*MMTOK_WEIGHTS_DIR"):
        AudioSuite(("wer",), 16000)
    with pytest.raises(ValueError, match="pip install"):
        AudioSuite(("speaker",), 16000)
    assert set(SCORERS) < set(NAMES)


def test_signals_are_resampled_for_the_metric_and_must_agree_in_length(clip):
    suite = AudioSuite(("pesq", "mel"), 24000)
    from mmtok.data.resample import resample

    up = torch.from_numpy(resample(clip[None].numpy(), 16000, 24000)[0])
    values = suite.panel().update("a", suite.hear(up), suite.hear(up))
    assert values["pesq_wb"] == pytest.approx(4.64, abs=0.01) and values["mel_dac"] == 0
    with pytest.raises(ValueError, match="a: original .* samples, reconstruction"):
        suite.panel().update("a", suite.hear(up), suite.hear(up[:-5000]))
