"""Opus and Codec 2: whole files that decode by themselves, aligned with the original, better when larger."""

import numpy as np
import pytest
import torch

from mmtok.data.decode_audio import EncodedAudio
from mmtok.metrics.audio.anchors import SpeechSetting, codec2_file, decode_codec2, opus_file, settings, through
from mmtok.metrics.audio.intrusive import PESQ, STOI


def pcm(wave):
    return (wave * 32767).round().to(torch.int16).numpy()


def test_bits_buy_quality(clip):
    scorers = PESQ(), STOI()
    rows = []
    for setting in (SpeechSetting("codec2", 700), SpeechSetting("codec2", 3200), SpeechSetting("opus", 8000),
                    SpeechSetting("opus", 24000)):
        heard = through(clip, 16000, setting)
        assert heard.wave.shape == clip.shape and heard.wave.dtype == torch.float32
        assert 0 < heard.payload < heard.size
        values = [next(iter(s.score(clip, heard.wave).values())) for s in scorers]
        rows.append((heard.size, *values))
    assert [sorted(column) for column in zip(*rows, strict=True)] == [list(c) for c in zip(*rows, strict=True)]
    assert rows[1][2] > 0.8 and rows[3][1] > 4  # Codec 2 at its best is intelligible, Opus at 24 kbit/s is good


@pytest.mark.parametrize(("codec", "bitrate", "slack"), [("opus", 24000, 2), ("codec2", 3200, 60)])
def test_what_comes_back_is_aligned(clip, codec, bitrate, slack):
    back = through(clip, 16000, SpeechSetting(codec, bitrate)).wave.double()
    # envelopes, because Codec 2 does not keep phases
    kernel = torch.hann_window(160, dtype=torch.float64)[None, None]
    a, b = (torch.conv1d(x.double().abs()[None, None], kernel)[0, 0] for x in (clip, back))
    a, b = a - a.mean(), b - b.mean()
    n = 2 * a.numel()
    correlation = torch.fft.irfft(torch.fft.rfft(b, n) * torch.fft.rfft(a, n).conj(), n)
    lag = int(correlation.argmax())
    assert abs(lag if lag < n // 2 else lag - n) <= slack


def test_an_opus_file_is_one_that_others_read(clip):
    file, payload = opus_file(pcm(clip), 16000, 12000)
    assert file[:4] == b"OggS" and b"OpusHead" in file[:64]
    audio = EncodedAudio(file, "opus")
    assert audio.channels == 1 and abs(audio.seconds - clip.numel() / 16000) < 0.001
    rate = 8 * payload / audio.seconds
    assert 0.7 * 12000 < rate < 1.2 * 12000
    assert opus_file(pcm(clip), 16000, 12000) == (file, payload)


def test_a_codec2_file_states_its_mode_and_counts_whole_frames():
    tone = (0.2 * np.sin(np.arange(8000) * 0.1) * 32767).astype(np.int16)
    for mode, number, size, frame in ((3200, 0, 8, 160), (1200, 5, 6, 320), (700, 8, 4, 320)):
        file, payload = codec2_file(tone, mode)
        assert file[:3] == b"\xc0\xde\xc2" and file[5] == number and len(file) == payload + 7
        frames = -(-(8000 + 160) // frame)
        assert payload == frames * size
        assert len(decode_codec2(file)) == frames * frame - 160 >= 8000


@pytest.mark.parametrize("rate", [8000, 24000, 44100])
def test_any_rate_of_the_codec_under_test(clip, rate):
    from mmtok.data.resample import resample

    wave = torch.from_numpy(resample(clip[None, :16000].numpy(), 16000, rate)[0])
    for setting in (SpeechSetting("opus", 16000), SpeechSetting("codec2", 2400)):
        heard = through(wave, rate, setting)
        assert heard.wave.shape == wave.shape and float(heard.wave.abs().max()) > 0.05


def test_settings_are_named_and_checked(monkeypatch):
    labels = [setting.label for setting in settings()]
    assert labels[0] == "Opus 6k" and "Codec 2 700C" in labels and len(set(labels)) == len(labels)
    with pytest.raises(ValueError, match="opus, codec2"):
        settings(("mp3",))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'codec2 needs pycodec2: pip install "mmtok\[speech\]"'):
        settings(("codec2",))
