"""torchcodec behind the reader protocol: chosen only when it really decodes, the same frames as PyAV."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from video_files import clip

from mmtok.data import decode_torchcodec
from mmtok.data.bad import BadSample
from mmtok.data.decode_audio import EncodedAudio
from mmtok.data.decode_ffmpeg import LEAD, ContainerAudio
from mmtok.data.decode_torchcodec import TorchcodecVideo, open_video, usable
from mmtok.data.decode_video import EncodedVideo, Fit, VideoCaps
from mmtok.data.video import ClipCrop, VideoItems, cover

REAL = usable()


class FakeDecoder:
    """The interface of torchcodec's VideoDecoder on frames that PyAV decodes."""

    def __init__(self, source):
        self.video = EncodedVideo(source)

    def get_frame_at(self, index):
        return types.SimpleNamespace(data=self.video.frames([index])[:, 0])

    def get_frames_played_at(self, seconds):
        numbers = np.searchsorted(self.video.times, np.array(seconds), side="right") - 1
        data = self.video.frames(numbers.tolist()).transpose(0, 1)
        return types.SimpleNamespace(data=data, pts_seconds=torch.from_numpy(self.video.times[numbers]))


class FakeAudioDecoder:
    """The interface of torchcodec's AudioDecoder on samples that PyAV decodes."""

    def __init__(self, source):
        self.audio = ContainerAudio(source, 3600.0)

    def get_samples_played_in_range(self, start, stop):
        first, last = (round(t * self.audio.rate) for t in (start, stop))
        x = torch.from_numpy(self.audio._stretch(first, last - first))
        return types.SimpleNamespace(data=x, pts_seconds=first / self.audio.rate)


class BrokenDecoder:
    """torchcodec without FFmpeg: it imports, and fails on the first file."""

    def __init__(self, source):
        raise RuntimeError("Could not load libtorchcodec")


@pytest.fixture
def installed(monkeypatch):
    def put(decoder):
        package, inner = types.ModuleType("torchcodec"), types.ModuleType("torchcodec.decoders")
        package.decoders, inner.VideoDecoder, inner.AudioDecoder = inner, decoder, FakeAudioDecoder
        monkeypatch.setitem(sys.modules, "torchcodec", package)
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", inner)
        decode_torchcodec.usable.cache_clear()

    yield put
    decode_torchcodec.usable.cache_clear()


def test_it_is_used_only_when_a_file_can_be_opened(installed, monkeypatch):
    installed(FakeDecoder)
    assert usable() and type(open_video(clip())) is TorchcodecVideo
    installed(BrokenDecoder)
    assert not usable() and type(open_video(clip())) is EncodedVideo
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    decode_torchcodec.usable.cache_clear()
    assert not usable() and type(open_video(clip())) is EncodedVideo


def both(data, numbers, plan):
    return TorchcodecVideo(data).frames(numbers, plan), EncodedVideo(data).frames(numbers, plan)


CASES = {
    "mp4": {}, "webm": {"kind": "webm", "codec": "libvpx-vp9"}, "avi": {"kind": "avi", "codec": "mpeg4"},
    "matroska": {"kind": "matroska"}, "gif": {"kind": "gif", "codec": "gif"}, "sound": {"sound": True},
    "variable rate": {"times": [0, 10, 13, 50, 90, 91, 95, 200, 210, 300], "frames": 10},
}  # fmt: skip
DECODERS = [
    FakeDecoder,
    pytest.param(None, marks=pytest.mark.skipif(not REAL, reason="torchcodec cannot decode here"), id="real"),
]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("case", CASES)
def test_frames_equal_those_of_pyav(installed, decoder, case):
    if decoder is not None:
        installed(decoder)
    data = clip(**CASES[case])
    numbers = [0, 0, 3, 4, 9] if case == "variable rate" else [0, 0, 3, 4, 17, 19]
    plans = [
        lambda size: Fit(size, size),
        lambda size: Fit((size[0] // 2, size[1] // 2), (16, 20), 3, 5, True),
    ]
    for plan in plans:
        ours, theirs = both(data, numbers, plan)
        assert ours.shape == theirs.shape and ours.dtype == torch.uint8
        assert float((ours.float() - theirs.float()).abs().mean()) < 3
        # grey levels are 10 apart: no frame is taken for its neighbour
        grey = ours[1, :, -1, -1 if plan is plans[0] else 0].float()
        assert float((grey - theirs[1, :, -1, -1 if plan is plans[0] else 0].float()).abs().max()) < 4


@pytest.mark.parametrize("decoder", DECODERS)
def test_faults_and_rotation(installed, decoder):
    if decoder is not None:
        installed(decoder)
    turned = clip(turn=90)
    ours, theirs = both(turned, [2], lambda size: Fit(size, size))
    assert ours.shape == theirs.shape == (3, 1, 64, 48)
    assert float((ours.float() - theirs.float()).abs().mean()) < 3
    with pytest.raises(BadSample):
        TorchcodecVideo(clip(frames=200)[:3000]).frames([150])
    with pytest.raises(BadSample, match="too_large"):
        TorchcodecVideo(clip(), VideoCaps(max_pixels=100))
    with pytest.raises(BadSample):
        TorchcodecVideo(b"no video")


@pytest.mark.parametrize("decoder", DECODERS)
def test_what_is_measured_is_always_pyavs(installed, monkeypatch, decoder):
    if decoder is not None:
        installed(decoder)
    data, used = clip(frames=9), []
    reader = types.SimpleNamespace(read=lambda sample, extensions: {"mp4": data})
    frames = EncodedVideo.frames
    monkeypatch.setattr(TorchcodecVideo, "frames", lambda self, *rest: used.append(1) or frames(self, *rest))
    measured = VideoItems(reader, None, None, "hold", False).load(0, (5, 32, 32), 0).x
    alone = EncodedVideo(data).frames(range(2, 7), lambda size: cover(size, (32, 32)))
    assert not used and torch.equal(measured, alone)
    VideoItems(reader, None, ClipCrop(), "hold", False).load(0, (5, 32, 32), 0)
    assert used


@pytest.mark.parametrize("decoder", DECODERS)
def test_sound_of_mp4_equals_that_of_pyav(installed, monkeypatch, decoder):
    if decoder is not None:
        installed(decoder)
    data = clip(frames=60, sound=True)
    theirs = ContainerAudio(data, 3600.0)
    whole = theirs._stretch(0, theirs.frames)
    assert usable() and whole.shape == (1, theirs.frames) and theirs.frames > 4 * LEAD
    monkeypatch.setattr(theirs, "_stretch", None)  # it is not PyAV that reads
    ours = EncodedAudio(data, "m4a")
    assert (ours.rate, ours.channels, ours.frames) == (16000, 1, theirs.frames)
    for start, count in ((0, theirs.frames), (5, 100), (LEAD + 1, 2000), (3 * LEAD, 1), (theirs.frames - 9, 9)):
        assert np.allclose(ours.read(start, count), whole[:, start : start + count], atol=1e-4)
        assert np.array_equal(ours.read(start, count), theirs.read(start, count))
    monkeypatch.setattr(sys.modules["torchcodec.decoders"], "AudioDecoder", BrokenDecoder)
    with pytest.raises(BadSample, match="corrupt"):
        ours.read(0, 10)
