"""Audio that libsndfile does not read, by FFmpeg in PyAV's wheel: m4a, aac and other containers, and G.722.

Legend: C channels, n samples of a stretch.
"""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmtok.data.bad import BadSample

G722_RATE = 16000
LEAD = 12 * 1152  # samples decoded before a stretch: frames of lossy codecs carry over into the next ones


class G722Audio:
    """G.722 has no header and is 16 kHz mono. rate, channels, frames as in `EncodedAudio`."""

    rate, channels = G722_RATE, 1

    def __init__(self, data: bytes) -> None:
        self._data, self.frames = data, 2 * len(data)

    def read(self, start: int, count: int) -> NDArray[np.float32]:
        """float32 [1, n]. Raises BadSample: corrupt."""
        return self._whole[:, start : start + count]

    @functools.cached_property
    def _whole(self) -> NDArray[np.float32]:
        """The coder is adaptive: only a whole file decodes exactly (at 2000 times real time)."""
        import av

        codec = av.CodecContext.create("g722", "r")
        codec.sample_rate, codec.layout = G722_RATE, "mono"  # type: ignore[attr-defined]
        try:
            frames = [*codec.decode(av.Packet(self._data)), *codec.decode(None)]  # type: ignore[attr-defined]
        except (av.FFmpegError, ValueError) as error:
            raise BadSample("corrupt", str(error)) from None
        return np.concatenate([frame.to_ndarray() for frame in frames], 1).astype(np.float32) / np.float32(32768)


class ContainerAudio:
    """The first audio stream of a container; rate, channels, frames as in `EncodedAudio`.

    MP4 states its length and the place of every sample: stretches of it are sought. Of other containers both are
    guesses, so those are decoded as a whole, once, when `frames` or samples are asked for: look at rate and channels
    before. Of more than `max_seconds` only one sample more is decoded.
    """

    def __init__(self, data: bytes, max_seconds: float) -> None:
        """Raises BadSample: unsupported, no_audio."""
        import av

        self._data = data
        try:
            with self._open() as container:
                if not container.streams.audio:
                    raise BadSample("no_audio", "no audio stream")
                stream = container.streams.audio[0]
                self.rate, self.channels = stream.rate or 0, stream.channels
                self._most, self._stated = int(max_seconds * self.rate), 0
                if "mp4" in container.format.name and stream.duration:
                    self._stated = round(float(stream.duration * stream.time_base) * self.rate)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise BadSample("unsupported", f"not an audio file of a known format ({error})") from None

    @property
    def frames(self) -> int:
        """Raises BadSample: corrupt."""
        return self._stated or self._whole.shape[1]

    def read(self, start: int, count: int) -> NDArray[np.float32]:
        """float32 [C, n], less than `count` at the end. Raises BadSample: corrupt."""
        from mmtok.data.decode_torchcodec import read_sound, usable

        if not self._stated:
            return self._whole[:, start : start + count]
        return read_sound(self._data, self.rate, start, count) if usable() else self._stretch(start, count)

    def _open(self) -> Any:
        import av

        return av.open(io.BytesIO(self._data), "r")

    @functools.cached_property
    def _whole(self) -> NDArray[np.float32]:
        return self._stretch(0, self._most + 1)

    def _stretch(self, start: int, count: int, seek: bool = True) -> NDArray[np.float32]:
        import av

        parts: list[NDArray[Any]] = []
        # number of the first decoded sample, once it is known, and of the next
        begin, at = None if seek and start > LEAD else 0, 0
        try:
            with self._open() as container:
                stream, to_float = container.streams.audio[0], av.AudioResampler(format="fltp")
                if begin is None:
                    container.seek(round((start - LEAD) / self.rate / stream.time_base), stream=stream)
                for frame in container.decode(stream):
                    if begin is None:
                        since = None if frame.pts is None else (frame.pts - (stream.start_time or 0)) * frame.time_base
                        if since is None or since * self.rate > start:  # the seek went too far
                            return self._stretch(start, count, seek=False)
                        begin = at = round(float(since * self.rate))
                    for part in to_float.resample(frame):
                        parts.append(part.to_ndarray())
                        at += part.samples
                    if at >= start + count:
                        break
        except (av.FFmpegError, OSError, ValueError) as error:
            raise BadSample("corrupt", str(error)) from None
        if begin is None or not parts:
            return np.zeros((self.channels, 0), np.float32)
        x = np.concatenate(parts, 1).astype(np.float32, copy=False)
        return x[:, start - begin : start - begin + count]
