"""Audio bytes -> float samples, safely. Caps on rate, channels and seconds are checked in the header.

Legend: C channels, n samples of a stretch, both as stored.

soundfile (libsndfile) reads wav, flac, ogg, opus, mp3 and aiff, and seeks in them. PyAV (FFmpeg in the wheel) reads
the rest: G.722, which has no header and is always 16 kHz mono, and m4a, aac and what libsndfile refuses. torchcodec
is not used: it needs a system FFmpeg of the right version and would read nothing more than these two.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmtok.data.bad import BadSample

EXTENSIONS = ("flac", "wav", "ogg", "oga", "opus", "mp3", "g722", "aiff", "aif", "m4a", "aac")
G722_RATE = 16000
_BLOCK = 1 << 18
_LEAD = 12 * 1152  # samples decoded before a stretch of mp3, vorbis or opus: their frames carry over into it


@dataclass(frozen=True)
class AudioCaps:
    """What a file may hold; beyond these the sample is bad before anything is decoded.

    max_seconds, max_rate (Hz), max_channels; min_rate refuses narrow-band recordings (0: none)
    """

    max_seconds: float = 3600.0
    max_rate: int = 192_000
    max_channels: int = 8
    min_rate: int = 0


DEFAULT_CAPS = AudioCaps()


class EncodedAudio:
    """An audio file whose header is read and whose samples are not.

    rate      Hz
    channels  C
    frames    samples a channel, as the header says
    """

    def __init__(self, data: bytes, ext: str, caps: AudioCaps = DEFAULT_CAPS) -> None:
        """Raises BadSample: empty, unsupported, corrupt, truncated, too_large, low_rate."""
        if not data:
            raise BadSample("empty", "0 bytes")
        self._data, self._decoded = data, None  # type: tuple[bytes, NDArray[np.float32] | None]
        self._file = None if ext == "g722" else _open_soundfile(data)
        if self._file is not None:
            self.rate, self.channels, self.frames = self._file.samplerate, self._file.channels, self._file.frames
            if ext == "wav":
                _check_riff(data)
        elif ext == "g722":
            self.rate, self.channels, self.frames = G722_RATE, 1, 2 * len(data)
        else:
            self.rate, self.channels, self.frames = _probe(data, caps.max_seconds)
        if not 1 <= self.rate <= caps.max_rate:
            raise BadSample("too_large", f"{self.rate} Hz, the cap is {caps.max_rate}")
        if self.rate < caps.min_rate:
            raise BadSample("low_rate", f"{self.rate} Hz, at least {caps.min_rate} is wanted")
        if not 1 <= self.channels <= caps.max_channels:
            raise BadSample("too_large", f"{self.channels} channels, the cap is {caps.max_channels}")
        if self.frames > caps.max_seconds * self.rate:
            raise BadSample("too_large", f"{self.frames / self.rate:.0f} s, the cap is {caps.max_seconds:.0f}")
        if self.frames < 1:
            raise BadSample("empty", "no samples")
        self._cap = int(caps.max_seconds * self.rate)

    @property
    def seconds(self) -> float:
        return self.frames / self.rate

    def read(self, start: int = 0, count: int | None = None) -> NDArray[np.float32]:
        """float32 [C, n] from sample `start` on; fewer than `count` only at the end of the file.

        Full scale is 1; float files may go beyond. Raises BadSample: corrupt, truncated.
        """
        count = self.frames - start if count is None else min(count, self.frames - start)
        if self._file is None:
            if self._decoded is None:
                g722 = self.rate == G722_RATE and self.frames == 2 * len(self._data) and self.channels == 1
                self._decoded = _decode_g722(self._data) if g722 else _decode_av(self._data, self._cap)
            x = self._decoded[:, start : start + count]
        else:
            try:
                lead = min(start, _LEAD) if self._file.format in ("MP3", "OGG") else 0
                self._file.seek(start - lead)
                x = self._file.read(lead + count, dtype="float32", always_2d=True).T[:, lead:]
            except RuntimeError as error:  # LibsndfileError is one
                raise BadSample("corrupt", str(error)) from None
        if x.shape[1] < count:
            raise BadSample("truncated", f"{start + x.shape[1]} of {self.frames} samples are there")
        if not np.isfinite(x).all():
            raise BadSample("corrupt", "NaN or infinite samples")
        return np.ascontiguousarray(x, dtype=np.float32)

    def check(self) -> None:
        """Decode everything once, in blocks. Raises BadSample."""
        for start in range(0, self.frames, _BLOCK):
            self.read(start, _BLOCK)


def _open_soundfile(data: bytes):  # type: ignore[no-untyped-def]
    """An open SoundFile, or None when libsndfile knows no such format."""
    import soundfile

    try:
        return soundfile.SoundFile(io.BytesIO(data))
    except (RuntimeError, ValueError, TypeError):
        return None


def _check_riff(data: bytes) -> None:
    """libsndfile takes what is there of a cut wav; the header tells. Streams write 0 or ffffffff as their size."""
    size = int.from_bytes(data[4:8], "little")
    if data[:4] == b"RIFF" and 0 < size < 0xFFFFFFFF and size > len(data) - 8 + 1:
        raise BadSample("truncated", f"{len(data)} of {size + 8} bytes are there")


def _probe(data: bytes, most: float) -> tuple[int, int, int]:
    """(rate, channels, samples) by FFmpeg; where the container states no length it is decoded, up to `most` seconds."""
    import av

    try:
        with av.open(io.BytesIO(data), "r") as container:
            if not container.streams.audio:
                raise BadSample("no_audio", "no audio stream")
            stream = container.streams.audio[0]
            rate, channels = stream.rate or 0, stream.channels
            if stream.duration and stream.time_base:
                return rate, channels, round(float(stream.duration * stream.time_base) * rate)
            total = 0
            for frame in container.decode(stream):
                total += int(frame.samples)
                if total > most * rate:
                    break
            return rate, channels, total
    except BadSample:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        raise BadSample("unsupported", f"not an audio file of a known format ({error})") from None


def _decode_g722(data: bytes) -> NDArray[np.float32]:
    """float32 [1, 2 * bytes]. The coder is adaptive: only a whole file decodes exactly (at 2000 times real time)."""
    import av

    codec = av.CodecContext.create("g722", "r")
    codec.sample_rate, codec.layout = G722_RATE, "mono"  # type: ignore[attr-defined]
    try:
        frames = [*codec.decode(av.Packet(data)), *codec.decode(None)]  # type: ignore[attr-defined]
    except (av.FFmpegError, ValueError) as error:
        raise BadSample("corrupt", str(error)) from None
    return np.concatenate([frame.to_ndarray() for frame in frames], 1).astype(np.float32) / np.float32(32768)


def _decode_av(data: bytes, cap: int) -> NDArray[np.float32]:
    """float32 [C, n] of the first audio stream, at most `cap` samples."""
    import av

    parts, total = [], 0
    try:
        with av.open(io.BytesIO(data), "r") as container:
            to_float = av.AudioResampler(format="fltp")
            for frame in container.decode(audio=0):
                for part in to_float.resample(frame):
                    parts.append(part.to_ndarray())
                    total += part.samples
                if total > cap:
                    raise BadSample("too_large", f"more than {cap} samples, against its header")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise BadSample("corrupt", str(error)) from None
    if not parts:
        raise BadSample("empty", "no samples")
    return np.concatenate(parts, 1).astype(np.float32, copy=False)
