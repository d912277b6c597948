"""The LightningDataModule over shards of audio."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmtok.data.audio import AudioItems, ClipOptions, Short
from mmtok.data.decode_audio import DEFAULT_CAPS, AudioCaps
from mmtok.data.index import Index
from mmtok.data.loudness import Loudness
from mmtok.data.reader import Reader
from mmtok.data.shard_module import ShardModule, Source, check


class AudioData(ShardModule):
    """Audio from WebDataset shards, in one global order: batches of float32 [B, C, T] in [-1, 1] with true lengths.

    train, val, test, batch_size, window, batches_per_epoch, text, ...: see `ShardModule`; `samples:audio` is the set
    that comes with the package
    sample_rate   Hz of the batches; files of other rates are resampled (soxr)
    seconds       length of a training crop, rounded down to a multiple of `hop` samples
    hop           crops start at multiples of it
    channels      1 averages, 2 repeats mono
    short         clips shorter than a crop: "pad" (with true lengths) or "loop" (repeated to its length)
    loudness      policy for training clips, see `mmtok.data.loudness`; None keeps the recorded level
    silence_db    training crops under this level (dBFS) are drawn again; None keeps them
    speed         [low, high]: playback speed of training clips is drawn from this range
    features      precomputed features, name -> samples of `sample_rate` that one of their frames stands for: members
                  `key.<name>.npy` float [F, E], cut with the clip, arrive as `batch.features[name]` [B, F, E]
    visits        "once": every clip once an epoch; "length": once for every `seconds` of it
    eval_seconds  only the first so many seconds of evaluation clips; None takes them whole, padded to the longest
    caps          what a file may hold, checked in its header
    """

    def __init__(
        self,
        train: str | list[str] | list[Source],
        sample_rate: int,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        seconds: float = 1.0,
        hop: int = 1,
        channels: int = 1,
        short: Short = "pad",
        loudness: Loudness | None = None,
        silence_db: float | None = None,
        speed: tuple[float, float] | None = None,
        features: dict[str, int] | None = None,
        visits: Literal["once", "length"] = "once",
        eval_seconds: float | None = None,
        num_workers: int = 2,
        seed: int = 0,
        window: int = 16,
        batches_per_epoch: int | None = None,
        text: bool = False,
        max_bad_fraction: float = 0.01,
        caps: AudioCaps = DEFAULT_CAPS,
        pin_memory: bool = False,
        start_method: str | None = None,
        cache: str | None = None,
    ) -> None:
        super().__init__(
            train, val, test, batch_size, eval_batch_size, num_workers, seed, window, batches_per_epoch, text,
            max_bad_fraction, pin_memory, start_method, cache,
        )  # fmt: skip
        check("sample_rate", sample_rate >= 1, "at least 1 Hz")
        check("hop", hop >= 1, "at least 1 sample")
        check("channels", channels in (1, 2), "1 or 2")
        self.crop = int(seconds * sample_rate) // hop * hop
        check("seconds", self.crop >= 1, f"at least one hop of {hop} samples")
        check("eval_seconds", eval_seconds is None or eval_seconds > 0, "positive, or null")
        check("speed", speed is None or 0.25 <= speed[0] <= speed[1] <= 4, "[low, high] between 0.25 and 4, or null")
        for name, frame in (features or {}).items():
            check(f"data.features.{name}", frame >= 1 and hop % frame == 0, f"a divisor of data.hop = {hop}")
        if features:
            check("speed", speed is None, "null where there are features: they were computed at the recorded speed")
            check("short", short == "pad", "pad where there are features")
        self.sample_rate, self.visits, self.caps = sample_rate, visits, caps
        self.eval_samples = 0 if eval_seconds is None else int(eval_seconds * sample_rate)
        self.options = ClipOptions(sample_rate, channels, hop, short, loudness, silence_db, speed, features or {})

    def items(self, index: Index, training: bool) -> AudioItems:
        """Decoding, cutting and levels; evaluation clips start at the beginning and keep theirs."""
        options = self.options
        if not training:
            # a step of more samples than any file has: the only crop is the first
            options = replace(options, hop=1 << 40, short="pad", loudness=None, silence_db=None, speed=None)
        return AudioItems(Reader(index, self.cache / "shards"), options, self.text, self.caps)

    def groups(self, index: Index) -> list[tuple[NDArray[np.int64], list[tuple[int, ...]]]]:
        """One group; long clips stand in it as often as they are visited."""
        samples = np.arange(len(index))
        if self.visits == "length":
            sizes = index.sizes().astype(np.int64)
            if (sizes == 0).any():
                raise ValueError(
                    f"data.visits: length needs lengths, and {int((sizes == 0).any(1).sum())} samples lack one in the"
                    " index; run `mmtok shards check --rewrite`, or set visits: once"
                )
            wanted = np.maximum(1, np.round(sizes[:, 1] / sizes[:, 0] * self.sample_rate / self.crop))
            samples = np.repeat(samples, wanted.astype(np.int64))
        return [(samples, [(self.crop,)])]

    def eval_shape(self) -> tuple[int, ...]:
        return (self.eval_samples,)
