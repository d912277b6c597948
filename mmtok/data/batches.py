"""What a worker does: a slot of the plan, or a list of samples, becomes one raw batch.

Both datasets are map-style: a batch is a pure function of the number asked for, whichever worker serves it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mmtok.data.bad import BadSample
from mmtok.data.decode import EXTENSIONS, MAX_PIXELS, EncodedImage, to_float, to_uint8
from mmtok.data.order import Order, Slot, mix
from mmtok.data.reader import Reader
from mmtok.data.transforms import Transform
from mmtok.types import Batch

SUBSTITUTES = 64  # how many following samples are tried in place of a bad one


@dataclass
class Bad:
    """A skipped sample."""

    key: str
    reason: str
    message: str


class Raw(Protocol):
    """A batch as it crosses the worker's queue."""

    keys: tuple[str, ...]
    bad: list[Bad]

    def batch(self) -> Batch: ...


class Items(Protocol):
    """Decodes and transforms one sample of an index; puts samples together. `size` is the slot's."""

    reader: Reader

    def load(self, sample: int, size: tuple[int, ...], seed: int) -> Any: ...

    def collate(self, keys: list[str], items: list[Any], size: tuple[int, ...], bad: list[Bad]) -> Raw: ...


@dataclass
class RawBatch:
    """A batch as it crosses the worker's queue: a quarter of the bytes of float32.

    x  uint8 [B, 3, H, W]
    """

    x: Tensor
    keys: tuple[str, ...]
    text: tuple[str, ...] | None
    bad: list[Bad]

    def batch(self) -> Batch:
        """float32 in [-1, 1]."""
        size = torch.tensor([self.x.shape[2:]] * len(self.keys), dtype=torch.int64).view(-1, 2)
        return Batch(to_float(self.x), self.keys, size, text=self.text)


class ImageItems:
    """Decodes and transforms one sample of an index.

    text  also read the caption (`key.txt`); "" where a sample has none
    """

    def __init__(self, reader: Reader, transform: Transform, text: bool, max_pixels: int = MAX_PIXELS) -> None:
        self.reader, self.transform, self.max_pixels = reader, transform, max_pixels
        self.extensions = (*EXTENSIONS, "txt") if text else EXTENSIONS
        self.text = text

    def load(self, sample: int, size: tuple[int, ...], seed: int) -> tuple[Tensor, str]:
        """(uint8 [3, H, W], caption). Raises BadSample."""
        members = self.reader.read(sample, self.extensions)
        caption = members.pop("txt", b"").decode("utf-8", "replace")
        if not members:
            raise BadSample("no_image", f"no member among {', '.join(EXTENSIONS)}")
        image = EncodedImage(next(iter(members.values())), self.max_pixels)
        return to_uint8(self.transform(image, (size[0], size[1]), random.Random(seed))), caption

    def collate(
        self, keys: list[str], items: list[tuple[Tensor, str]], size: tuple[int, ...], bad: list[Bad]
    ) -> RawBatch:
        x = torch.stack([pixels for pixels, _ in items]) if items else torch.empty(0, 3, *size, dtype=torch.uint8)
        return RawBatch(x, tuple(keys), tuple(text for _, text in items) if self.text else None, bad)


@dataclass
class Stream:
    """Samples that are drawn together: a source, or one aspect bucket of a source.

    samples  int64 [n] sample numbers, ascending; one that stands there k times is visited k times an epoch
    """

    samples: NDArray[np.int64]
    order: Order


class TrainBatches(Dataset[Raw]):
    """Slot -> this rank's share of the batch.

    A bad sample is replaced by the next good one of the epoch's order, augmented with a seed of its own: still
    a pure function of the step, so that a resumed run sees the same pixels.
    """

    def __init__(self, items: Items, streams: Sequence[Stream], seed: int, rank: int, batch_size: int) -> None:
        self.items, self.streams, self.seed = items, list(streams), seed
        self.rank, self.batch_size = rank, batch_size

    def __getitem__(self, slot: Slot) -> Raw:
        first = slot.first + self.rank * self.batch_size
        keys, items, bad = [], [], list[Bad]()
        for item in range(first, first + self.batch_size):
            sample, loaded = self._load(slot, item, bad)
            keys.append(self.items.reader.key(sample))
            items.append(loaded)
        return self.items.collate(keys, items, slot.size, bad)

    def _load(self, slot: Slot, item: int, bad: list[Bad]) -> tuple[int, Any]:
        stream = self.streams[slot.stream]
        tries = min(SUBSTITUTES, len(stream.order))
        for offset in range(tries):
            epoch, position = stream.order.at(item + offset)
            sample = int(stream.samples[position])
            again = position - int(np.searchsorted(stream.samples, sample))  # the how-manieth visit of this epoch
            seed = mix(self.seed, epoch, sample, *([again] if again else []), *([item] if offset else []))
            try:
                return sample, self.items.load(sample, slot.size, seed)
            except BadSample as error:
                # A substitute that is bad too has its own place in the order, where it is counted.
                if not offset:
                    bad.append(Bad(self.items.reader.key(sample), error.reason, str(error)))
        raise ValueError(
            f"data.train: {tries} samples in a row cannot be decoded, the last is "
            f"{self.items.reader.key(sample)}; run `mmtok shards check` on the shards"
        )


class EvalBatches(Dataset[Raw]):
    """Batch number -> samples rank, rank + world, ... in index order; the last batch may be short or empty."""

    def __init__(self, items: Items, size: tuple[int, ...], rank: int, world: int, batch_size: int) -> None:
        self.items, self.size, self.batch_size = items, size, batch_size
        self.samples: Sequence[int] = range(rank, len(items.reader.index), world)

    def __len__(self) -> int:
        return -(-len(self.samples) // self.batch_size)

    def __getitem__(self, number: int) -> Raw:
        if not 0 <= number < len(self):
            raise IndexError(number)
        keys, items, bad = [], [], []
        for sample in self.samples[number * self.batch_size : (number + 1) * self.batch_size]:
            key = self.items.reader.key(sample)
            try:
                items.append(self.items.load(sample, self.size, mix(0, sample)))
                keys.append(key)
            except BadSample as error:
                bad.append(Bad(key, error.reason, str(error)))
        return self.items.collate(keys, items, self.size, bad)
