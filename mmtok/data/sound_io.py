"""Sound files in pieces, so that hours of them need little memory: reading any format, writing wav, flac, ogg or mp3.

Legend: C channels, n samples of a piece.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmtok.data.decode_ffmpeg import G722_RATE

PIECE = 1 << 16
WRITTEN = (".wav", ".flac", ".ogg", ".opus", ".mp3")
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)


class SoundReader:
    """A file opened for reading from its beginning to its end.

    rate, channels  of the file; ValueError names it when it is no readable sound
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = None
        if path.stat().st_size == 0:
            raise ValueError(f"{path}: empty")
        if path.suffix.lower() != ".g722":
            import soundfile

            try:
                self._file = soundfile.SoundFile(str(path))
                self.rate, self.channels = self._file.samplerate, self._file.channels
            except RuntimeError:
                self._file = None
        if self._file is None:
            self._open_av()

    def pieces(self) -> Iterator[NDArray[np.float32]]:
        """float32 [C, n], full scale 1. ValueError names the file when it breaks off or holds NaN."""
        for x in self._from_soundfile() if self._file is not None else self._from_av():
            if not np.isfinite(x).all():
                raise ValueError(f"{self.path}: holds NaN or infinity")
            yield x

    def _from_soundfile(self) -> Iterator[NDArray[np.float32]]:
        assert self._file is not None
        with self._file as file:
            left = file.frames
            while left > 0:
                try:
                    x = file.read(min(PIECE, left), dtype="float32", always_2d=True).T
                except RuntimeError as error:
                    raise ValueError(f"{self.path}: {error}") from None
                if not x.shape[1]:
                    raise ValueError(f"{self.path}: ends {left} samples early")
                left -= x.shape[1]
                yield x

    def _open_av(self) -> None:
        import av

        g722 = self.path.suffix.lower() == ".g722"
        try:
            self._container = av.open(str(self.path), format="g722" if g722 else None)
            if not self._container.streams.audio:
                raise ValueError(f"{self.path}: no sound in it")
            stream = self._container.streams.audio[0]
            self.rate, self.channels = (G722_RATE, 1) if g722 else (stream.rate or 0, stream.channels)
        except av.FFmpegError as error:
            raise ValueError(f"{self.path}: not a sound file of a known format ({error.strerror})") from None
        if self.rate < 1:
            raise ValueError(f"{self.path}: states no sample rate")

    def _from_av(self) -> Iterator[NDArray[np.float32]]:
        import av

        to_float = av.AudioResampler(format="fltp")
        try:
            with self._container as container:
                for frame in container.decode(audio=0):
                    for part in to_float.resample(frame):
                        yield part.to_ndarray().astype(np.float32, copy=False)
        except av.FFmpegError as error:
            raise ValueError(f"{self.path}: {error.strerror}") from None


def write_sound(path: Path, pieces: Iterator[NDArray[np.float32]], rate: int, channels: int) -> int:
    """Writes float32 [C, n] pieces in [-1, 1] in the format of the file's ending; returns the samples a channel.

    16 bits where the format counts bits. An existing file is replaced at once, and only by a whole one.
    """
    import soundfile

    ending = path.suffix.lower()
    if ending == ".opus" and rate not in _OPUS_RATES:
        raise ValueError(f"{path}: opus knows no rate of {rate} Hz; write .wav, .flac or .ogg")
    format = {".wav": "WAV", ".flac": "FLAC", ".mp3": "MP3"}.get(ending, "OGG")
    subtype = {".wav": "PCM_16", ".flac": "PCM_16", ".mp3": None, ".opus": "OPUS"}.get(ending, "VORBIS")
    temporary, count = path.with_name(f".{os.getpid()}.{path.name}"), 0
    try:
        with soundfile.SoundFile(str(temporary), "w", rate, channels, subtype, format=format) as file:
            for x in pieces:
                file.write(np.clip(x, -1, 1).T)
                count += x.shape[1]
        os.replace(temporary, path)
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return count
