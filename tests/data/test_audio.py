"""Decoding, crops and policies of audio, against files written by independent encoders."""

from __future__ import annotations

import io
import math
import random

import av
import numpy as np
import pytest
import soundfile

from mmtok.data import decode_torchcodec
from mmtok.data.audio import AudioItems, ClipOptions, mix
from mmtok.data.audio_samples import OWN
from mmtok.data.bad import BadSample
from mmtok.data.decode_audio import AudioCaps, EncodedAudio
from mmtok.data.decode_ffmpeg import ContainerAudio
from mmtok.data.loudness import RandomGain, TargetLevel, level
from mmtok.data.resample import ResampleStream, resample, resampled_length

RATE = 16000


def tones(rate: int = RATE, seconds: float = 1.0, channels: int = 1) -> np.ndarray:
    """float32 [C, n]: 440 Hz, and 880 Hz in a second channel, ..."""
    t = np.arange(int(rate * seconds)) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * 440 * (c + 1) * t) for c in range(channels)]).astype(np.float32)


def encoded(x: np.ndarray, rate: int, format: str, subtype: str | None = None) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, x.T, rate, format=format, subtype=subtype)
    return stream.getvalue()


def aac(x: np.ndarray, rate: int, container: str) -> bytes:
    stream, layout = io.BytesIO(), "stereo" if len(x) > 1 else "mono"
    with av.open(stream, "w", format=container) as out:
        track = out.add_stream("aac", rate=rate, layout=layout)
        track.bit_rate = 256_000
        track.options = {"aac_pns": "0"}  # noise that a decoder draws depends on where it began
        for at in range(0, x.shape[1], 1024):
            block = av.AudioFrame.from_ndarray(np.ascontiguousarray(x[:, at : at + 1024]), "fltp", layout)
            block.sample_rate, block.pts = rate, at
            out.mux(track.encode(block))
        out.mux(track.encode(None))
    return stream.getvalue()


def snr(x: np.ndarray, y: np.ndarray) -> float:
    return 10 * math.log10(float((x**2).sum() / max(((x - y) ** 2).sum(), 1e-20)))


def items(**options: object) -> AudioItems:
    return AudioItems(None, ClipOptions(**{"sample_rate": RATE, **options}), text=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ext", "format", "subtype", "least"),
    [("wav", "WAV", "PCM_16", 80), ("wav", "WAV", "FLOAT", 150), ("flac", "FLAC", "PCM_24", 110),
     ("aiff", "AIFF", None, 80), ("ogg", "OGG", "VORBIS", 15), ("opus", "OGG", "OPUS", 12), ("mp3", "MP3", None, 12)],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 2])
def test_formats_decode_to_what_was_written(ext, format, subtype, least, channels):
    x = tones(seconds=2.5, channels=channels)
    audio = EncodedAudio(encoded(x, RATE, format, subtype), ext)
    y = audio.read()
    assert (audio.rate, audio.channels) == (RATE, channels) and y.dtype == np.float32
    assert abs(audio.frames - x.shape[1]) <= 3000  # mp3 and opus may add what their encoder does
    n = min(x.shape[1], y.shape[1])
    assert snr(x[:, :n], y[:, :n]) > least
    for start in (4000, 30000):
        assert np.allclose(audio.read(start, 1000), y[:, start : start + 1000], atol=1e-3)


def test_g722_is_16_khz_and_the_sample_prompts_are_speech():
    files = sorted((OWN / "train" / "en_allison").iterdir())
    audio = EncodedAudio(files[0].read_bytes(), "g722")
    x = audio.read()
    assert (audio.rate, audio.channels, audio.frames) == (RATE, 1, 2 * files[0].stat().st_size) == (RATE, 1, x.shape[1])
    assert -40 < level(x) < -10 and np.array_equal(audio.read(1000, 50), x[:, 1000:1050])


@pytest.mark.parametrize(("ext", "container"), [("m4a", "mp4"), ("aac", "adts"), ("m4a", "matroska")])
@pytest.mark.parametrize("rate", [RATE, 44100])
def test_what_libsndfile_refuses_goes_to_ffmpeg(ext, container, rate):
    x = tones(rate, seconds=4.0, channels=2) * np.linspace(0.2, 1, 4 * rate, dtype=np.float32)
    audio = EncodedAudio(aac(x, rate, container), ext)
    y = audio.read()
    late = 1024 if container == "adts" else 0  # what AAC delays; the others say so
    assert (audio.rate, audio.channels) == (rate, 2) and y.shape == (2, audio.frames)
    assert 0 <= audio.frames - x.shape[1] - late < 1024
    assert snr(x, y[:, late : late + x.shape[1]]) > 25
    for start, count in ((0, 500), (1, 7), (14000, 3000), (3 * rate + 5, 4000), (audio.frames - 1, 1)):
        assert np.allclose(audio.read(start, count), y[:, start : start + count], atol=1e-4)
    audio.check()
    with pytest.raises(BadSample, match="truncated|corrupt|unsupported"):
        EncodedAudio(aac(x, rate, "mp4")[:20000], ext).check()


def test_a_seek_that_goes_too_far_is_mended(monkeypatch):
    audio = EncodedAudio(aac(tones(seconds=4.0), RATE, "mp4"), "m4a")
    wanted, opened = audio.read(30000, 500), ContainerAudio._open

    class Far:
        def __init__(self, container):
            self.container = container

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.container.close()

        def __getattr__(self, name):
            return getattr(self.container, name)

        def seek(self, place, stream):
            self.container.seek(place + 40000, stream=stream)

    monkeypatch.setattr(decode_torchcodec, "usable", lambda: False)
    monkeypatch.setattr(ContainerAudio, "_open", lambda self: Far(opened(self)))
    assert np.array_equal(audio.read(30000, 500), wanted)


@pytest.mark.parametrize(
    ("data", "ext", "reason"),
    [
        (b"", "wav", "empty"), (b"this is a text, not a sound", "wav", "unsupported"),
        (encoded(tones(), RATE, "WAV")[:9000], "wav", "truncated"),
        (encoded(tones(), RATE, "FLAC")[:9000], "flac", "corrupt|truncated"),
        (encoded(np.zeros((1, 0), np.float32), RATE, "WAV"), "wav", "empty"),
        (encoded(np.full((1, 100), np.nan, np.float32), RATE, "WAV", "FLOAT"), "wav", "corrupt"),
        (encoded(tones(channels=9), RATE, "WAV"), "wav", "too_large"),
        (encoded(tones(seconds=3), RATE, "WAV"), "wav", "too_large"),
        (encoded(tones(rate=96000, seconds=0.1), 96000, "WAV"), "wav", "too_large"),
        (encoded(tones(rate=8000, seconds=0.1), 8000, "WAV"), "wav", "low_rate"),
    ],
    ids=["empty", "text", "cut-wav", "cut-flac", "no-samples", "nan", "channels", "long", "rate", "narrow"],
)
def test_bad_files_are_named(data, ext, reason):
    with pytest.raises(BadSample) as caught:
        EncodedAudio(data, ext, AudioCaps(max_seconds=2, max_rate=48000, min_rate=16000)).check()
    assert caught.value.reason in reason.split("|")


def test_a_header_that_lies_about_its_length_decodes_nothing():
    data = bytearray(encoded(tones(), RATE, "FLAC"))
    data[21:26] = b"\xff" * 5  # 36 bits of the number of samples in STREAMINFO
    with pytest.raises(BadSample) as caught:
        EncodedAudio(bytes(data), "flac")
    assert caught.value.reason == "too_large"


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_resampling_keeps_a_tone_and_streams_alike(rate):
    x = tones(rate, 0.4)
    y = resample(x, rate, RATE)
    want = tones(RATE, 0.4)
    assert y.shape == want.shape and snr(want[:, 800:-800], y[:, 800:-800]) > 60
    stream, parts, at = ResampleStream(rate, RATE, 1), [], 0
    for size in (1, 700, 5, 2000, x.shape[1]):
        parts.append(stream.push(x[:, at : at + size], last=at + size >= x.shape[1]))
        at += size
    whole = np.concatenate(parts, 1)
    assert whole.shape == y.shape and np.abs(whole - y).max() < 1e-4


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_a_crop_is_the_stretch_of_the_whole_clip(rate):
    rng = np.random.default_rng(0)
    x = np.cumsum(rng.normal(size=(1, rate)), 1)  # brown noise, band-limited enough to compare
    x = (x / np.abs(x).max() * 0.9).astype(np.float32)
    audio = EncodedAudio(encoded(x, rate, "WAV", "FLOAT"), "wav")
    cutter = items(hop=320)
    whole = cutter.cut(audio, 0, random.Random(0))
    assert whole.shape == (1, RATE) == (1, resampled_length(x.shape[1], rate, RATE))
    starts = set()
    for seed in range(6):
        crop = cutter.cut(audio, 3200, random.Random(seed))
        start = random.Random(seed).randrange((RATE - 3200) // 320 + 1) * 320
        starts.add(start)
        assert crop.shape == (1, 3200) and np.abs(crop - whole[:, start : start + 3200]).max() < 2e-3
    assert len(starts) > 2


def test_channels_and_clipping():
    stereo = np.stack([np.full(10, 0.5), np.full(10, -0.1)]).astype(np.float32)
    assert np.allclose(mix(stereo, 1), 0.2) and np.array_equal(mix(stereo[:1], 2), stereo[[0, 0]])
    with pytest.raises(BadSample, match="channels"):
        mix(np.zeros((6, 4), np.float32), 2)
    loud = EncodedAudio(encoded(3 * tones(), RATE, "WAV", "FLOAT"), "wav")
    assert np.abs(items().cut(loud, 0, random.Random(0))).max() == 1


def test_silence_is_drawn_again_or_refused():
    x = tones()
    x[:, :14000] = 0
    audio = EncodedAudio(encoded(x, RATE, "WAV"), "wav")
    crops = [items(hop=1000, silence_db=-30.0).cut(audio, 2000, random.Random(seed)) for seed in range(3)]
    assert all(level(crop) > -30 for crop in crops)
    silent = EncodedAudio(encoded(0 * x, RATE, "WAV"), "wav")
    for count in (0, 1000):
        with pytest.raises(BadSample, match="silent"):
            items(silence_db=-60.0).cut(silent, count, random.Random(0))
    assert not items().cut(silent, 0, random.Random(0)).any()


def test_loudness_policies():
    x, rng = tones() * 0.1, random.Random(0)
    assert abs(level(TargetLevel(-20.0)(x, rng)) + 20) < 0.01
    assert np.abs(TargetLevel(-1.0)(x, rng)).max() == pytest.approx(0.999)
    gains = [level(RandomGain(-6.0, 6.0)(x, rng)) - level(x) for _ in range(50)]
    assert -6 <= min(gains) < -3 and 3 < max(gains) <= 6
    assert not TargetLevel()(x * 0, rng).any()


def test_speed_moves_pitch_and_length():
    audio = EncodedAudio(encoded(tones(), RATE, "WAV"), "wav")
    fast = items(speed=(1.25, 1.25)).cut(audio, 0, random.Random(0))
    peak = np.abs(np.fft.rfft(fast[0] * np.hanning(fast.shape[1]))).argmax() * RATE / fast.shape[1]
    assert fast.shape == (1, 12800) and abs(peak - 550) < 2


def test_short_clips_loop_or_keep_their_length():
    clips = [items().cut(EncodedAudio(encoded(tones(seconds=s), RATE, "WAV"), "wav"), 8000, random.Random(0))
             for s in (0.2, 1.0)]  # fmt: skip
    wrapped = [type("Clip", (), {"x": x, "text": ""}) for x in clips]
    padded = items().collate(["a", "b"], wrapped, (8000,), []).batch()
    assert padded.lengths.tolist() == padded.size[:, 0].tolist() == [3200, 8000] and not padded.x[0, :, 3200:].any()
    looped = items(short="loop").collate(["a", "b"], wrapped, (8000,), []).batch()
    assert looped.lengths.tolist() == [8000, 8000] and np.array_equal(looped.x[0, :, 3200:6400], looped.x[0, :, :3200])
