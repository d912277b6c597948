"""The LightningDataModule over shards of video."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mmtok.data import still
from mmtok.data.decode_video import DEFAULT_CAPS, EXTENSIONS, VideoCaps
from mmtok.data.index import Index
from mmtok.data.loader import TrainLoader
from mmtok.data.reader import Reader
from mmtok.data.shard_module import ShardModule, Source, aspect_buckets, check
from mmtok.data.video import ClipCrop, Short, VideoItems


class VideoData(ShardModule):
    """Video from WebDataset shards, in one global order: batches of float32 [B, 3, T, H, W] in [-1, 1].

    train, val, test, batch_size, window, batches_per_epoch, text, ...: see `ShardModule`; `samples:video` is the set
    that installed packages make up
    frames      T of a clip; a list draws one of them a step. Checked against what the model codes without filling.
                Images among the samples are videos of one frame: they make up batches of their own, with T = 1, so a
                second source of images gives joint training
    fps         frames per second of clips, taken by timestamp; null keeps the frames of each file
    image_size  side in pixels; a list draws one of them a step
    aspects     W:H of training clips of about image_size^2 pixels, both sides multiples of `multiple`: every file goes
                to the nearest, one of them is drawn a step. null: squares
    eval_frames, eval_size  for val and test; null is the largest of the lists. Clips are central in time and space
    crop        of training clips; null is ClipCrop()
    short       files shorter than a clip: "hold" repeats their last frame, "skip" counts them as bad
    caps        what a file may hold, checked in its header
    """

    def __init__(
        self,
        train: str | list[str] | list[Source],
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        frames: int | list[int] = 17,
        fps: float | None = None,
        image_size: int | list[int] = 128,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        eval_frames: int | None = None,
        eval_size: int | None = None,
        aspects: list[float] | None = None,
        multiple: int = 16,
        crop: ClipCrop | None = None,
        short: Short = "hold",
        num_workers: int = 2,
        seed: int = 0,
        window: int = 16,
        batches_per_epoch: int | None = None,
        text: bool = False,
        max_bad_fraction: float = 0.01,
        caps: VideoCaps = DEFAULT_CAPS,
        pin_memory: bool = False,
        start_method: str | None = None,
        cache: str | None = None,
    ) -> None:
        super().__init__(
            train, val, test, batch_size, eval_batch_size, num_workers, seed, window, batches_per_epoch, text,
            max_bad_fraction, pin_memory, start_method, cache,
        )  # fmt: skip
        self.frames = [frames] if isinstance(frames, int) else list(frames)
        self.image_sizes = [image_size] if isinstance(image_size, int) else list(image_size)
        check("frames", bool(self.frames) and min(self.frames) >= 1, "at least 1 frame")
        check("image_size", bool(self.image_sizes) and min(self.image_sizes) >= 1, "at least 1 pixel")
        check("fps", fps is None or 0 < fps <= 1000, "positive, or null for the frames of each file")
        self.eval_frames = eval_frames or max(self.frames)
        self.eval_size = eval_size or max(self.image_sizes)
        self.aspects, self.multiple = aspects, multiple
        self.fps, self.crop, self.short, self.caps = fps, crop or ClipCrop(), short, caps

    def items(self, index: Index, training: bool) -> VideoItems:
        """Decoding and cutting; evaluation clips are held rather than skipped, so that every key counts."""
        reader = Reader(index, self.cache / "shards")
        if training:
            return VideoItems(reader, self.fps, self.crop, self.short, self.text, self.caps)
        return VideoItems(reader, self.fps, None, "hold", self.text, self.caps)

    def groups(self, index: Index) -> list[tuple[NDArray[np.int64], list[tuple[int, ...]]]]:
        """Videos, which may take every length at every size, and images, of one frame; both by aspect."""
        buckets, nearest = aspect_buckets(index, self.image_sizes, self.aspects, self.multiple)
        images = _has(index, still.EXTENSIONS) & ~_has(index, EXTENSIONS)
        found: list[tuple[NDArray[np.int64], list[tuple[int, ...]]]] = []
        for (rows, frames), bucket in itertools.product(
            ((~images, self.frames), (images, [1])), range(len(buckets[0]))
        ):
            sizes = [(t, *sized[bucket]) for t in frames for sized in buckets]
            found.append((np.flatnonzero(rows & (nearest == bucket)), sizes))  # type: ignore[arg-type]
        return found

    def eval_shape(self) -> tuple[int, ...]:
        return (self.eval_frames, self.eval_size, self.eval_size)

    def train_dataloader(self) -> TrainLoader:
        """As `ShardModule`; ValueError when the model under training would fill up clips of `frames`."""
        task = getattr(self.trainer, "lightning_module", None)
        if task is not None and hasattr(task, "tokenizer"):
            check_clips(task.tokenizer, self.frames, self.image_sizes[0])
        return super().train_dataloader()


def _has(index: Index, extensions: Sequence[str]) -> NDArray[np.bool_]:
    """bool [N]: samples with a member among these."""
    found = [np.zeros(len(shard), dtype=bool) for shard in index.shards]
    for rows, shard in zip(found, index.shards, strict=True):
        for ext in extensions:
            if ext in shard.members:
                rows |= shard.members[ext][:, 0] >= 0
    return np.concatenate(found)


class Positions(Protocol):
    """A tokenizer, of which only the grid of codes is asked for."""

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]: ...


def check_clips(tokenizer: Positions, frames: Sequence[int], side: int) -> None:
    """ValueError naming `data.frames` unless whole blocks of the model hold clips of so many frames (or one image)."""
    def blocks(count: int) -> int:
        return tokenizer.positions((count, side, side))[0]

    for count in frames:
        if count > 1 and blocks(count) == blocks(count + 1):
            below = next((n for n in range(count, 0, -1) if blocks(n) != blocks(n + 1)), 1)
            above = next(n for n in itertools.count(count) if blocks(n) != blocks(n + 1))
            raise ValueError(
                f"data.frames: {count} frames do not fill the blocks of {type(tokenizer).__name__}; take"
                f" {below} or {above}"
            )
