"""Audio bytes -> float samples, safely. Caps on rate, channels and seconds are checked in the header.

Legend: C channels, n samples of a stretch, both as stored.

soundfile (libsndfile) reads wav, flac, ogg, opus, mp3 and aiff, and seeks in them; FFmpeg (`mmtok.data.decode_ffmpeg`)
reads G.722, m4a, aac and what libsndfile refuses.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmtok.data.bad import BadSample
from mmtok.data.decode_ffmpeg import LEAD, ContainerAudio, G722Audio

EXTENSIONS = ("flac", "wav", "ogg", "oga", "opus", "mp3", "g722", "aiff", "aif", "m4a", "aac")
_BLOCK = 1 << 18


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
        self._source = _source(data, ext, caps.max_seconds)
        self.rate, self.channels = self._source.rate, self._source.channels
        if not 1 <= self.rate <= caps.max_rate:
            raise BadSample("too_large", f"{self.rate} Hz, the cap is {caps.max_rate}")
        if self.rate < caps.min_rate:
            raise BadSample("low_rate", f"{self.rate} Hz, at least {caps.min_rate} is wanted")
        if not 1 <= self.channels <= caps.max_channels:
            raise BadSample("too_large", f"{self.channels} channels, the cap is {caps.max_channels}")
        self.frames = self._source.frames  # which may decode the file: last
        if self.frames > caps.max_seconds * self.rate:
            raise BadSample("too_large", f"{self.frames / self.rate:.0f} s, the cap is {caps.max_seconds:.0f}")
        if self.frames < 1:
            raise BadSample("empty", "no samples")

    @property
    def seconds(self) -> float:
        return self.frames / self.rate

    def read(self, start: int = 0, count: int | None = None) -> NDArray[np.float32]:
        """float32 [C, n] from sample `start` on; fewer than `count` only at the end of the file.

        Full scale is 1; float files may go beyond. Raises BadSample: corrupt, truncated.
        """
        count = self.frames - start if count is None else min(count, self.frames - start)
        x = self._source.read(start, count)
        if x.shape[1] < count:
            raise BadSample("truncated", f"{start + x.shape[1]} of {self.frames} samples are there")
        if not np.isfinite(x).all():
            raise BadSample("corrupt", "NaN or infinite samples")
        return np.ascontiguousarray(x, dtype=np.float32)

    def check(self) -> None:
        """Decode everything once, in blocks. Raises BadSample."""
        for start in range(0, self.frames, _BLOCK):
            self.read(start, _BLOCK)


def _source(data: bytes, ext: str, max_seconds: float) -> SoundfileAudio | G722Audio | ContainerAudio:
    if ext == "g722":
        return G722Audio(data)
    try:
        audio = SoundfileAudio(data)
    except (RuntimeError, ValueError, TypeError):  # a format libsndfile does not know
        return ContainerAudio(data, max_seconds)
    if ext == "wav":
        _check_riff(data)
    return audio


class SoundfileAudio:
    """A file open in libsndfile; rate, channels, frames as in `EncodedAudio`. Raises RuntimeError and ValueError."""

    def __init__(self, data: bytes) -> None:
        import soundfile

        self._file = soundfile.SoundFile(io.BytesIO(data))
        self.rate, self.channels, self.frames = self._file.samplerate, self._file.channels, self._file.frames

    def read(self, start: int, count: int) -> NDArray[np.float32]:
        """float32 [C, n], less than `count` at the end. Raises BadSample: corrupt."""
        try:
            lead = min(start, LEAD) if self._file.format in ("MP3", "OGG") else 0
            self._file.seek(start - lead)
            x: NDArray[np.float32] = self._file.read(lead + count, dtype="float32", always_2d=True).T[:, lead:]
            return x
        except RuntimeError as error:  # LibsndfileError is one
            raise BadSample("corrupt", str(error)) from None


def _check_riff(data: bytes) -> None:
    """libsndfile takes what is there of a cut wav; the header tells. Streams write 0 or ffffffff as their size."""
    size = int.from_bytes(data[4:8], "little")
    if data[:4] == b"RIFF" and 0 < size < 0xFFFFFFFF and size > len(data) - 8 + 1:
        raise BadSample("truncated", f"{len(data)} of {size + 8} bytes are there")
