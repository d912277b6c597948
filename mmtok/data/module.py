"""The LightningDataModule over shards of images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmtok.data.batches import ImageItems
from mmtok.data.decode import MAX_PIXELS
from mmtok.data.index import Index
from mmtok.data.reader import Reader
from mmtok.data.shard_module import ShardModule, Source, aspect_buckets, check
from mmtok.data.transforms import CenterCrop, RandomResizedCrop, Transform

__all__ = ["ShardData", "Source"]


class ShardData(ShardModule):
    """Images from WebDataset shards, in one global order.

    train             shards (path, folder, glob, brace list, https), or `samples:image`, or weighted sources
    val, test         the same; read once, in index order. `samples:image` gives its held-out photographs
    batch_size        samples a step and rank
    image_size        side in pixels; a list draws one of them a step
    eval_size         side for val and test; None is the largest image_size
    aspects           W:H of aspect buckets; each sample goes to the nearest, each step uses one bucket
    multiple          bucket sides are multiples of this
    transform         training crop; None is RandomResizedCrop()
    eval_transform    None is CenterCrop()
    window            shards shuffled together (and, when remote, cached)
    batches_per_epoch length of an epoch for the Trainer; None is samples // global batch
    text              deliver captions (`key.txt`)
    max_bad_fraction  share of unusable samples that stops the run
    start_method      fork, spawn or forkserver for workers; None is the platform's own
    cache             folder for remote shards and materialised samples; None is MMTOK_HOME

    All ranks see the same global batch j, each takes its slice; `state_dict` holds the cursor of what was
    consumed, which continues exactly with any number of workers and ranks.
    """

    def __init__(
        self,
        train: str | list[str] | list[Source],
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        image_size: int | list[int] = 256,
        eval_size: int | None = None,
        aspects: list[float] | None = None,
        multiple: int = 16,
        transform: Transform | None = None,
        eval_transform: Transform | None = None,
        num_workers: int = 2,
        seed: int = 0,
        window: int = 16,
        batches_per_epoch: int | None = None,
        text: bool = False,
        max_bad_fraction: float = 0.01,
        max_pixels: int = MAX_PIXELS,
        pin_memory: bool = False,
        start_method: str | None = None,
        cache: str | None = None,
    ) -> None:
        super().__init__(
            train, val, test, batch_size, eval_batch_size, num_workers, seed, window, batches_per_epoch, text,
            max_bad_fraction, pin_memory, start_method, cache,
        )  # fmt: skip
        self.image_sizes = [image_size] if isinstance(image_size, int) else list(image_size)
        self.eval_size = eval_size or max(self.image_sizes, default=0)
        self.aspects, self.multiple = aspects, multiple
        self.transform = transform or RandomResizedCrop()
        self.eval_transform = eval_transform or CenterCrop()
        self.max_pixels = max_pixels
        check("image_size", bool(self.image_sizes) and min(self.image_sizes) >= 1, "at least 1 pixel")

    def items(self, index: Index, training: bool) -> ImageItems:
        """Decoding and cropping."""
        transform = self.transform if training else self.eval_transform
        return ImageItems(Reader(index, self.cache / "shards"), transform, self.text, self.max_pixels)

    def groups(self, index: Index) -> list[tuple[NDArray[np.int64], list[tuple[int, ...]]]]:
        """Aspect buckets."""
        buckets, nearest = aspect_buckets(index, self.image_sizes, self.aspects, self.multiple)
        return [
            (np.flatnonzero(nearest == bucket), [sized[bucket] for sized in buckets])
            for bucket in range(len(buckets[0]))
        ]

    def eval_shape(self) -> tuple[int, ...]:
        return (self.eval_size, self.eval_size)
