"""Audio clips for training and evaluation: crops on the codec's grid, channels, speed, loudness, silence.

Legend: B batch, C channels, T samples at the wanted rate.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmtok.data.bad import BadSample
from mmtok.data.batches import Bad
from mmtok.data.decode_audio import DEFAULT_CAPS, EXTENSIONS, AudioCaps, EncodedAudio
from mmtok.data.features import joined, read_rows
from mmtok.data.loudness import Loudness, level
from mmtok.data.reader import Reader
from mmtok.data.resample import MARGIN, fit, resample, resampled_length
from mmtok.types import Batch

Short = Literal["pad", "loop"]
SILENCE_TRIES = 8


@dataclass
class RawAudio:
    """A batch as it crosses the worker's queue.

    x         float32 [B, C, T], zeros behind shorter clips
    lengths   true samples of each
    features  float32 [B, F, E] by name, zeros behind shorter clips
    """

    x: Tensor
    lengths: list[int]
    rate: int
    keys: tuple[str, ...]
    text: tuple[str, ...] | None
    bad: list[Bad]
    features: dict[str, Tensor]

    def batch(self) -> Batch:
        lengths = torch.tensor(self.lengths, dtype=torch.int64)
        rate = torch.full((len(self.keys),), float(self.rate), dtype=torch.float64)
        return Batch(self.x, self.keys, lengths[:, None], rate, lengths.clone(), self.text, self.features)


@dataclass(frozen=True)
class Clip:
    """What one sample gives: float32 [C, n] in [-1, 1], its caption, features float32 [F, E] by name."""

    x: NDArray[np.float32]
    text: str
    features: dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class ClipOptions:
    """How a clip is cut and treated.

    sample_rate  Hz of what comes out
    channels     1 averages whatever there is; 2 repeats mono; other files than these many (or mono) are bad samples
    hop          crops start at multiples of this many samples, so that frame-rate features can be cut alongside
    short        what happens to clips shorter than a crop: "pad" keeps their true length, "loop" repeats them
    loudness     None keeps the level of the recording
    silence_db   crops under this level (dBFS) are drawn again, up to 8 times; then the sample is bad. None keeps them
    speed        factors to draw the playback speed from: pitch and formants move with it, as if someone else spoke
    features     name of precomputed features (`key.<name>.npy`) -> samples that one of their frames stands for
    """

    sample_rate: int
    channels: int = 1
    hop: int = 1
    short: Short = "pad"
    loudness: Loudness | None = None
    silence_db: float | None = None
    speed: tuple[float, float] | None = None
    features: Mapping[str, int] = field(default_factory=dict)


class AudioItems:
    """Decodes and cuts one sample of an index. `load(sample, (0,), seed)` gives the whole clip.

    text  also read the transcript (`key.txt`); "" where a sample has none
    """

    def __init__(self, reader: Reader, options: ClipOptions, text: bool, caps: AudioCaps = DEFAULT_CAPS) -> None:
        self.reader, self.options, self.text, self.caps = reader, options, text, caps
        self.places = {name: f"{name}.npy" for name in options.features}
        self.extensions = (*EXTENSIONS, *self.places.values(), *(("txt",) if text else ()))

    def load(self, sample: int, size: tuple[int, ...], seed: int) -> Clip:
        """A clip of at most size[0] samples (0: all), and its features. Raises BadSample."""
        members = self.reader.read(sample, self.extensions)
        text = members.pop("txt", b"").decode("utf-8", "replace")
        arrays = {name: members.pop(ext, b"") for name, ext in self.places.items()}
        if not members:
            raise BadSample("no_audio", f"no member among {', '.join(EXTENSIONS)}")
        ext, data = next(iter(members.items()))
        audio, hops = EncodedAudio(data, ext, self.caps), self.options.features
        start, x = self._cut(audio, size[0], random.Random(seed))
        total = resampled_length(audio.frames, audio.rate, self.options.sample_rate)
        rows = {name: read_rows(name, array, start, x.shape[1], total, hops[name]) for name, array in arrays.items()}
        return Clip(x, text, rows)

    def cut(self, audio: EncodedAudio, count: int, rng: random.Random) -> NDArray[np.float32]:
        """float32 [C, at most `count`] in [-1, 1]."""
        return self._cut(audio, count, rng)[1]

    def _cut(self, audio: EncodedAudio, count: int, rng: random.Random) -> tuple[int, NDArray[np.float32]]:
        """The sample at which the crop begins, and the crop."""
        options = self.options
        rate = audio.rate * (rng.uniform(*options.speed) if options.speed else 1.0)
        total = resampled_length(audio.frames, rate, options.sample_rate)
        count = min(count, total) if count else total
        for _ in range(SILENCE_TRIES):
            start = rng.randrange((total - count) // options.hop + 1) * options.hop
            x = self._stretch(audio, rate, start, count)
            if options.silence_db is None or level(x) >= options.silence_db:
                break
            if count == total:
                raise BadSample("silent", f"the whole clip is under {options.silence_db} dBFS")
        else:
            raise BadSample("silent", f"{SILENCE_TRIES} crops in a row are under {options.silence_db} dBFS")
        if options.loudness is not None:
            x = options.loudness(x, rng)
        return start, np.clip(x, -1, 1)

    def collate(self, keys: list[str], items: list[Clip], size: tuple[int, ...], bad: list[Bad]) -> RawAudio:
        clips = [item.x for item in items]
        if self.options.short == "loop" and size[0]:
            clips = [np.tile(x, -(-size[0] // x.shape[1]))[:, : size[0]] for x in clips]
        longest = max((x.shape[1] for x in clips), default=0)
        out = np.zeros((len(clips), self.options.channels, longest), np.float32)
        for row, x in zip(out, clips, strict=True):
            row[:, : x.shape[1]] = x
        lengths = [x.shape[1] for x in clips]
        text = tuple(item.text for item in items) if self.text else None
        features = {name: joined(name, [item.features[name] for item in items]) for name in self.places if items}
        return RawAudio(torch.from_numpy(out), lengths, self.options.sample_rate, tuple(keys), text, bad, features)

    def _stretch(self, audio: EncodedAudio, rate: float, start: int, count: int) -> NDArray[np.float32]:
        """[C, count] from `start` at the wanted rate; what surrounds a crop feeds the resampling filter."""
        to = self.options.sample_rate
        if rate == to:
            return mix(audio.read(start, count), self.options.channels)
        before = min(start, int(MARGIN * to))
        first = round((start - before) * rate / to)
        stored = round((before + count + MARGIN * to) * rate / to) + 1
        x = mix(audio.read(first, min(stored, audio.frames - first)), self.options.channels)
        return fit(resample(x, rate, to)[:, before:], count)


def mix(x: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """[any, n] -> [channels, n]: the mean for one channel, mono repeated for more. Raises BadSample: channels."""
    if x.shape[0] == channels:
        return x
    if channels == 1:
        return x.mean(0, keepdims=True)
    if x.shape[0] == 1:
        return np.repeat(x, channels, 0)
    raise BadSample("channels", f"{x.shape[0]} channels, {channels} are wanted")
