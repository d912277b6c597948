"""Videos cut into short clips and encoded anew, and camera paths over photographs: what `mmtok shards make` writes.

Legend: n frames, H W pixels.

Clips are H.264 in MP4 with a key frame at least every `gop` seconds, so that any clip of frames is found fast. Frames
keep their own times (variable rates included); sound is kept beside them as AAC.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmtok.data.bad import BadSample
from mmtok.data.decode_video import EncodedVideo, Fit

TICK = Fraction(1, 90000)
# without cpu-independent, x264 decides by approximate reciprocals, of which every maker of processors has its own
X264 = "log-level=none:cpu-independent=1"
OPTIONS = {"preset": "veryfast", "crf": "17", "x264-params": X264}


@dataclass(frozen=True)
class Cutting:
    """How videos enter a shard; without any of it files keep their bytes.

    seconds     of a clip; a rest of less than half of it joins the clip before. None keeps whole videos
    gop         most seconds between key frames
    short_side  larger frames are reduced to this short side
    """

    seconds: float | None = None
    gop: float = 1.0
    short_side: int | None = None

    @property
    def keeps(self) -> bool:
        """Whether files enter as they are."""
        return self.seconds is None and self.short_side is None


@dataclass(frozen=True)
class CutClip:
    """An MP4 file with frames of `size` (H, W), and what its json says: fps, num_frames, seconds, start, sound."""

    data: bytes
    size: tuple[int, int]
    meta: dict[str, Any]


def cut(data: bytes, cutting: Cutting) -> Iterator[CutClip]:
    """The clips of a video, in order. Raises BadSample."""
    video = EncodedVideo(data)
    edges = _edges(video, cutting.seconds)
    pictures = video.pictures(range(len(video)), lambda size: _reduced(size, cutting.short_side))
    for first, end in edges:
        start = float(video.times[first])
        stop = float(video.times[end]) if end < len(video) else math.inf
        sound = _sound(data, start, stop) if video.sound else None
        part = (next(pictures) for _ in range(first, end))
        times = video.times[first:end] - start
        file, size = encode_clip(part, times.tolist(), video.rate, cutting.gop, sound)
        meta = {
            "fps": round(video.rate, 4), "num_frames": end - first, "start": round(start, 4),
            "seconds": round(float(times[-1]) + 1 / video.rate, 4), "sound": sound is not None,
        }  # fmt: skip
        yield CutClip(file, size, meta)


def encode_clip(
    pictures: Iterable[NDArray[np.uint8]], times: list[float], rate: float, gop: float = 1.0,
    sound: tuple[NDArray[np.float32], int] | None = None,
) -> tuple[bytes, tuple[int, int]]:
    """(MP4 file, (H, W)) of uint8 [H, W, 3] pictures shown at `times` seconds; odd sides lose a row or column."""
    import av

    stream, size = io.BytesIO(), (0, 0)
    with av.open(stream, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        track: Any = None
        voice: Any = None
        for number, (picture, time) in enumerate(zip(pictures, times, strict=True)):
            if track is None:
                size = tuple(max(2, n // 2 * 2) for n in picture.shape[:2])  # type: ignore[assignment]
                track = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
                track.height, track.width, track.pix_fmt = *size, "yuv420p"
                track.codec_context.time_base = track.time_base = TICK
                track.codec_context.gop_size = max(1, round(gop * rate))
                track.codec_context.thread_count = 1
                track.options = OPTIONS
                if sound is not None:
                    voice = container.add_stream("aac", rate=sound[1], layout="stereo" if len(sound[0]) > 1 else "mono")
            padded = picture if min(picture.shape[:2]) > 1 else np.resize(picture, (*size, 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(padded[: size[0], : size[1]]), format="rgb24")
            frame.pts, frame.time_base = round(time / TICK) if number else 0, TICK
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
        if sound is not None:
            wave, hertz = sound
            for at in range(0, wave.shape[1], 1024):
                block = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[:2, at : at + 1024]), "fltp", voice.layout)
                block.sample_rate, block.pts, block.time_base = hertz, at, Fraction(1, hertz)
                container.mux(voice.encode(block))
            container.mux(voice.encode(None))
    return stream.getvalue(), size


def camera_path(photo: Image.Image, seed: int, side: int = 256, seconds: float = 2.0, rate: float = 24.0) -> bytes:
    """An MP4 file of a camera that pans and zooms over a photograph, side x side: real textures, synthetic motion."""
    rng, count = random.Random(seed), round(seconds * rate)
    short = min(photo.size)
    spans = sorted((rng.uniform(0.35, 1.0) * short, rng.uniform(0.35, 1.0) * short), key=lambda _: rng.random())
    ends = [(rng.random(), rng.random()), (rng.random(), rng.random())]

    def picture(t: float) -> NDArray[np.uint8]:
        ease = t * t * (3 - 2 * t)
        span = spans[0] * (spans[1] / spans[0]) ** ease
        left, top = (
            (a + (b - a) * ease) * (n - span) for a, b, n in zip(*ends, photo.size, strict=True)
        )
        view = photo.resize((side, side), Image.Resampling.BICUBIC, (left, top, left + span, top + span))
        return np.asarray(view)

    pictures = (picture(i / max(1, count - 1)) for i in range(count))
    return encode_clip(pictures, [i / rate for i in range(count)], rate)[0]


def _edges(video: EncodedVideo, seconds: float | None) -> list[tuple[int, int]]:
    """(first, end) frame numbers of clips."""
    if seconds is None:
        return [(0, len(video))]
    length = float(video.times[-1] - video.times[0]) + 1 / video.rate
    count = max(1, math.floor(length / seconds + 0.5))
    starts = video.times[0] + np.arange(count) * seconds
    cuts = [int(n) for n in np.unique(np.searchsorted(video.times, starts - 1e-6))]
    return list(zip(cuts, [*cuts[1:], len(video)], strict=True))


def _reduced(size: tuple[int, int], short: int | None) -> Fit:
    if short is None or min(size) <= short:
        return Fit(size, size)
    scale = short / min(size)
    scaled = (round(size[0] * scale / 2) * 2, round(size[1] * scale / 2) * 2)
    return Fit(scaled, scaled)


def _sound(data: bytes, start: float, stop: float) -> tuple[NDArray[np.float32], int] | None:
    """(float32 [1 or 2, samples], Hz) between two times; None when the track is silent there or cannot be read."""
    import av

    parts: list[NDArray[np.float32]] = []
    first: float | None = None
    try:
        with av.open(io.BytesIO(data), "r") as container:
            hertz = container.streams.audio[0].rate
            layout = "stereo" if container.streams.audio[0].channels > 1 else "mono"
            to_float = av.AudioResampler(format="fltp", layout=layout, rate=hertz)
            for frame in container.decode(audio=0):
                time = frame.time or 0.0
                if time >= stop:
                    break
                if time + frame.samples / hertz > start:
                    first = time if first is None else first
                    parts += [part.to_ndarray().astype(np.float32, copy=False) for part in to_float.resample(frame)]
    except (av.FFmpegError, OSError, ValueError) as error:
        raise BadSample("corrupt", f"sound: {error}") from None
    if not parts or first is None:
        return None
    wave = np.concatenate(parts, 1)
    skip = max(0, round((start - first) * hertz))
    end = wave.shape[1] if stop == math.inf else min(wave.shape[1], skip + round((stop - start) * hertz))
    return (wave[:, skip:end], hertz) if end > skip else None
