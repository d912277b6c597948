"""Video clips for training and evaluation: which frames of a file, and how they become pictures of one size.

Legend: B batch, T frames, H W pixels.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmtok.data import still
from mmtok.data.bad import BadSample
from mmtok.data.batches import Bad
from mmtok.data.decode import to_float
from mmtok.data.decode_torchcodec import open_video
from mmtok.data.decode_video import DEFAULT_CAPS, EXTENSIONS, EncodedVideo, Fit, Plan, VideoCaps, VideoReader
from mmtok.data.reader import Reader
from mmtok.types import Batch

Short = Literal["hold", "skip"]


@dataclass
class RawClips:
    """A batch as it crosses the worker's queue: a quarter of the bytes of float32.

    x      uint8 [B, 3, T, H, W]
    rates  frames per second of each
    """

    x: Tensor
    rates: list[float]
    keys: tuple[str, ...]
    text: tuple[str, ...] | None
    bad: list[Bad]

    def batch(self) -> Batch:
        """float32 in [-1, 1]."""
        size = torch.tensor([self.x.shape[2:]] * len(self.keys), dtype=torch.int64).view(-1, 3)
        return Batch(to_float(self.x), self.keys, size, torch.tensor(self.rates, dtype=torch.float64), text=self.text)


@dataclass(frozen=True)
class Clip:
    """What one sample gives: uint8 [3, T, H, W], its frames per second, its caption."""

    x: Tensor
    rate: float
    text: str


class ClipCrop:
    """The largest window of the target's shape, shrunk by 1/zoom and placed at random, the same for all frames of a
    clip; frames are resized once, antialiased.

    zoom  range that it is drawn from; (1, 1) is "short side to the target, random crop"
    flip  probability of mirroring
    """

    def __init__(self, zoom: tuple[float, float] = (1.0, 1.0), flip: float = 0.5) -> None:
        if not 1 <= zoom[0] <= zoom[1]:
            raise ValueError(f"data.crop.zoom: needs 1 <= low <= high, got {zoom}")
        self.zoom, self.flip = tuple(zoom), flip

    def plan(self, target: tuple[int, int], rng: random.Random) -> Plan:
        """What happens to frames of any size."""
        zoom, y, x, flip = rng.uniform(*self.zoom), rng.random(), rng.random(), rng.random() < self.flip
        return lambda size: cover(size, target, zoom, y, x, flip)


def cover(
    size: tuple[int, int], target: tuple[int, int], zoom: float = 1.0, y: float = 0.5, x: float = 0.5,
    flip: bool = False,
) -> Fit:
    """Short side of `size` to `zoom` times the target, cut at the relative place (y, x); (0.5, 0.5) is the centre."""
    scale = max(target[0] / size[0], target[1] / size[1]) * zoom
    height, width = (max(t, round(n * scale)) for t, n in zip(target, size, strict=True))
    return Fit((height, width), target, round(y * (height - target[0])), round(x * (width - target[1])), flip)


def choose_frames(
    video: VideoReader, count: int, fps: float | None, place: float, short: Short = "hold"
) -> tuple[NDArray[np.int64], float]:
    """(int64 [count] frame numbers, frames per second) of a clip.

    fps    at `place` + k / fps seconds the frame shown nearest; None takes neighbouring frames
    place  where in the possible range the clip begins, 0 to 1
    short  files that end before the clip: "hold" repeats their last frame, "skip" raises BadSample (too_short)
    """
    n = len(video)
    if fps is None:
        room = n - count
        numbers = np.minimum(int(place * (max(0, room) + 1 - 1e-9)) + np.arange(count), n - 1)
    else:
        room = video.times[-1] - video.times[0] - (count - 1) / fps + 0.5 / max(video.rate, fps)
        begin = video.times[0] + place * max(0.0, float(room))
        numbers = video.nearest(begin + np.arange(count) / fps)
    if short == "skip" and room < 0:
        raise BadSample("too_short", f"{n} frames at {video.rate:.2f} a second, {count} are wanted")
    return numbers, video.rate if fps is None else fps


class VideoItems:
    """Decodes and cuts one sample of an index; sizes are (T, H, W). A sample without a video may be an image.

    fps    frames per second of clips; None keeps each file's own frames
    crop   of training clips; None takes the centre in time and space, without chance
    short  see `choose_frames`
    text   also read the caption (`key.txt`); "" where a sample has none
    """

    def __init__(
        self, reader: Reader, fps: float | None, crop: ClipCrop | None, short: Short, text: bool,
        caps: VideoCaps = DEFAULT_CAPS,
    ) -> None:
        self.reader, self.fps, self.crop, self.short, self.text, self.caps = reader, fps, crop, short, text, caps
        self.extensions = (*EXTENSIONS, *still.EXTENSIONS, *(("txt",) if text else ()))

    def load(self, sample: int, size: tuple[int, ...], seed: int) -> Clip:
        """A clip of size (T, H, W). Raises BadSample."""
        members = self.reader.read(sample, self.extensions)
        text = members.pop("txt", b"").decode("utf-8", "replace")
        if not members:
            raise BadSample("no_video", f"no member among {', '.join(self.extensions)}")
        ext, data = next(iter(members.items()))
        rng = random.Random(seed)
        video: VideoReader
        if ext in still.EXTENSIONS:
            video = still.StillImage(data, self.caps.max_pixels)
        elif self.crop is not None:
            video = open_video(data, self.caps)
        else:  # what is measured must not depend on the libraries of a machine: readers resize differently
            video = EncodedVideo(data, self.caps)
        place = rng.random() if self.crop is not None else 0.5
        numbers, rate = choose_frames(video, size[0], self.fps, place, self.short)
        target = (size[1], size[2])
        plan = self.crop.plan(target, rng) if self.crop is not None else (lambda own: cover(own, target))
        return Clip(video.frames(numbers.tolist(), plan), rate, text)

    def collate(self, keys: list[str], items: list[Clip], size: tuple[int, ...], bad: list[Bad]) -> RawClips:
        x = torch.stack([item.x for item in items]) if items else torch.empty(0, 3, *size, dtype=torch.uint8)
        text = tuple(item.text for item in items) if self.text else None
        return RawClips(x, [item.rate for item in items], tuple(keys), text, bad)
