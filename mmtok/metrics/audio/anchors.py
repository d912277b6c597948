"""Speech codecs to measure beside: Opus by PyAV (libopus) and Codec 2 by pycodec2, at their own whole file sizes.

Legend: T samples, mono, float32 in [-1, 1].
"""

from __future__ import annotations

import importlib.util
import io
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmtok.data.resample import resample
from mmtok.metrics.audio.mos import EXTRA

OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
CODEC2_RATE = 8000
CODEC2_MAGIC, CODEC2_VERSION = b"\xc0\xde\xc2", b"\x01\x00"  # then mode and flags, a byte each: 7 before the frames
CODEC2_MODES = {3200: 0, 2400: 1, 1600: 2, 1400: 3, 1300: 4, 1200: 5, 700: 8}
CODEC2_HEADER = 7
CODEC2_DELAY = 160  # samples that come out late: two frames of 10 ms overlap in synthesis


@dataclass(frozen=True)
class SpeechSetting:
    """One way to write an utterance: Opus at a bitrate in bit/s, or Codec 2 in the mode of that name in bit/s."""

    codec: str
    bitrate: int

    @property
    def series(self) -> str:
        return TITLES[self.codec]

    @property
    def label(self) -> str:
        """For people: "Opus 8k", "Codec 2 700C"."""
        if self.codec == "opus":
            return f"Opus {self.bitrate / 1000:g}k"
        return "Codec 2 " + ("700C" if self.bitrate == 700 else str(self.bitrate))


TITLES = {"opus": "Opus", "codec2": "Codec 2"}
SWEEPS = {"opus": (6000, 8000, 12000, 16000, 24000), "codec2": (700, 1200, 1600, 2400, 3200)}


@dataclass(frozen=True)
class Heard:
    """What comes back of an utterance: wave [T], bytes of the whole file and of its packets alone."""

    wave: Tensor
    size: int
    payload: int


def settings(codecs: tuple[str, ...] = ("opus", "codec2")) -> list[SpeechSetting]:
    """The sweep of these codecs; ValueError for an unknown one or one that is not installed."""
    needs = {"opus": "av", "codec2": "pycodec2"}
    for name in codecs:
        if name not in SWEEPS:
            raise ValueError(f'codecs: expected some of {", ".join(SWEEPS)}, got "{name}"')
        if importlib.util.find_spec(needs[name]) is None:
            raise ValueError(f'codecs: {name} needs {needs[name]}: {EXTRA}, or leave "{name}" out')
    return [SpeechSetting(name, bitrate) for name in codecs for bitrate in SWEEPS[name]]


def through(wave: Tensor, rate: int, setting: SpeechSetting) -> Heard:
    """An utterance [T] at `rate` Hz through a codec and back, aligned with the original and of the same length."""
    inner = CODEC2_RATE if setting.codec == "codec2" else next((r for r in OPUS_RATES if r >= rate), OPUS_RATES[-1])
    pcm = _to_int16(resample(wave[None].cpu().numpy(), rate, inner)[0])
    if setting.codec == "opus":
        file, payload = opus_file(pcm, inner, setting.bitrate)
        back, inner = decode_opus(file)
    else:
        file, payload = codec2_file(pcm, setting.bitrate)
        back = decode_codec2(file)
    y = resample(back[None], inner, rate)[0][: wave.numel()]
    y = np.pad(y, (0, wave.numel() - len(y))).clip(-1, 1)
    return Heard(torch.from_numpy(np.ascontiguousarray(y, dtype=np.float32)), len(file), payload)


def opus_file(pcm: NDArray[np.int16], rate: int, bitrate: int) -> tuple[bytes, int]:
    """(Ogg Opus file, bytes of its packets) of mono samples, at opusenc's defaults: variable rate, 20 ms frames."""
    import av

    stream, payload = io.BytesIO(), 0
    with av.open(stream, "w", format="ogg", options={"fflags": "+bitexact"}) as container:
        track = container.add_stream("libopus", rate=rate, layout="mono")
        track.bit_rate = bitrate
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        for packet in [*track.encode(frame), *track.encode(None)]:
            payload += packet.size
            container.mux(packet)
    return stream.getvalue(), payload


def decode_opus(file: bytes) -> tuple[NDArray[np.float32], int]:
    """(samples, Hz) of an Ogg Opus file; the decoder takes the encoder's delay off."""
    import av

    with av.open(io.BytesIO(file)) as container:
        frames = [frame.to_ndarray()[:1] for frame in container.decode(audio=0)]  # type: ignore[union-attr]
        rate = container.streams.audio[0].rate
    return np.concatenate(frames, 1)[0].astype(np.float32, copy=False), rate


def codec2_file(pcm: NDArray[np.int16], mode: int) -> tuple[bytes, int]:
    """(a .c2 file as c2enc writes it, bytes of its frames) of mono samples at 8 kHz; whole bytes a frame."""
    from pycodec2 import Codec2

    codec = Codec2(mode)
    size = codec.samples_per_frame()
    # enough frames that the delayed end comes out too
    padded = np.pad(pcm, (0, -(len(pcm) + CODEC2_DELAY) % size + CODEC2_DELAY))
    frames = b"".join(codec.encode(padded[at : at + size]) for at in range(0, len(padded), size))
    return CODEC2_MAGIC + CODEC2_VERSION + bytes([CODEC2_MODES[mode], 0]) + frames, len(frames)


def decode_codec2(file: bytes) -> NDArray[np.float32]:
    """Samples at 8 kHz of a .c2 file, the codec's delay taken off.

    The library draws phases of unvoiced speech from one generator a process, so last digits of scores vary by history.
    """
    from pycodec2 import Codec2

    codec = Codec2(next(mode for mode, number in CODEC2_MODES.items() if number == file[5]))
    size, frames = codec.bytes_per_frame(), file[CODEC2_HEADER:]
    parts = [codec.decode(frames[at : at + size]) for at in range(0, len(frames), size)]
    return np.concatenate(parts)[CODEC2_DELAY:].astype(np.float32) / np.float32(32768)


def _to_int16(x: NDArray[np.float32]) -> NDArray[np.int16]:
    return (x.clip(-1, 1) * 32767).round().astype(np.int16)
