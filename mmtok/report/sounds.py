"""Utterances to play as data URIs inside a byte budget, with spectrograms, and the codec version nearest in rate.

Legend: T samples, mono, float32 in [-1, 1].
"""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mmtok.nn.spectrum import MelSpectrum
from mmtok.report.audio_result import Clip, Sound
from mmtok.report.pictures import nearest

# (share of the clips, longest in seconds), tried in order until the page is small enough
LADDER = ((1.0, 8.0), (1.0, 5.0), (0.75, 5.0), (0.5, 5.0), (0.5, 3.0), (0.25, 3.0), (0.0, 3.0))
RANGE = 70.0  # dB shown below the loudest point of the original
ROWS = 80
# from silence to loud: the background of the page's dark theme, blue, rose, yellow
_COLOURS = np.array([[16, 18, 24], [42, 58, 128], [150, 60, 132], [236, 106, 92], [252, 228, 160]], dtype=np.float64)


def listening(clips: list[Clip], budget: int) -> tuple[list[dict[str, Any]], str]:
    """Plain data for the page, and how the sounds were stored.

    budget: bytes for all data URIs together. Shorter or fewer clips when they would not fit, and the text says so;
    numbers are always of whole utterances. FLAC, 16 bits, at the codec's rate.
    """
    for share, seconds in LADDER:
        chosen = clips[: math.ceil(len(clips) * share)]
        out = [_clip(clip, seconds) for clip in chosen]
        if sum(len(uri) for entry in out for uri in _uris(entry)) <= budget:
            break
    fewer = "" if len(chosen) == len(clips) else f"; {len(chosen)} of {len(clips)} are here"
    cut = any(clip.original.wave.numel() > seconds * clip.rate for clip in chosen)
    return out, "stored without loss" + (f", the first {seconds:g} s" if cut else "") + fewer


def _clip(clip: Clip, seconds: float) -> dict[str, Any]:
    view = _Spectrogram(clip, seconds)
    anchors = []
    for codec, sounds in clip.anchors.items():
        picks = [nearest(sounds, ours.values["bytes"]) for ours in clip.lengths]
        used = sorted(set(picks))
        anchors.append({
            "codec": codec, "pick": [used.index(i) for i in picks],
            "sounds": [_sound(sounds[i], view) for i in used],
        })
    return {
        "key": clip.key, "seconds": round(clip.original.wave.numel() / clip.rate, 1),
        "original": _sound(clip.original, view), "lengths": [_sound(sound, view) for sound in clip.lengths],
        "anchors": anchors,
    }


def _sound(sound: Sound, view: _Spectrogram) -> dict[str, Any]:
    wave = sound.wave[: view.samples]
    values = {key: round(value, 4) for key, value in sound.values.items()}
    return {"label": sound.label, "src": audio_uri(wave, view.rate), "image": view.uri(wave), "values": values}


def audio_uri(wave: Tensor, rate: int) -> str:
    """[T] as a 16-bit FLAC data URI."""
    import soundfile

    stream = io.BytesIO()
    pcm = (wave.clamp(-1, 1) * 32767).round().to(torch.int16).numpy()
    soundfile.write(stream, pcm, rate, format="FLAC", subtype="PCM_16")
    return "data:audio/flac;base64," + base64.b64encode(stream.getvalue()).decode()


class _Spectrogram:
    """Mel spectrograms of one clip's versions on one scale of loudness: that of its original."""

    def __init__(self, clip: Clip, seconds: float) -> None:
        self.rate, self.samples = clip.rate, min(int(seconds * clip.rate), clip.original.wave.numel())
        hop = max(1, self.samples // 360)
        window = 1 << max(8, (clip.rate // 32).bit_length())
        self.mel = MelSpectrum(clip.rate, window, hop, ROWS, power=2.0)
        self.top = float(self._decibels(clip.original.wave[: self.samples]).max())

    def uri(self, wave: Tensor) -> str:
        """A WebP picture, low frequencies below."""
        level = ((self._decibels(wave) - self.top) / RANGE + 1).clamp(0, 1).flip(0).numpy()
        stream = io.BytesIO()
        Image.fromarray(_coloured(level)).save(stream, "WEBP", quality=70, method=4)
        return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()

    def _decibels(self, wave: Tensor) -> Tensor:
        return 10 * self.mel(wave[None, None])[0, 0].clamp(min=1e-10).log10()


def _coloured(level: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[h, w] in [0, 1] -> uint8 [h, w, 3]."""
    stops = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(level, stops, _COLOURS[:, c]) for c in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def _uris(entry: dict[str, Any]) -> list[str]:
    sounds = [entry["original"], *entry["lengths"], *(s for anchor in entry["anchors"] for s in anchor["sounds"])]
    return [uri for sound in sounds for uri in (sound["src"], sound["image"])]
