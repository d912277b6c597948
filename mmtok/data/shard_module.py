"""What the LightningDataModules over shards share: sources, the global order, the cursor, evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray

from mmtok.data.batches import EvalBatches, Items, Stream, TrainBatches
from mmtok.data.index import Index
from mmtok.data.loader import BadCounter, EvalLoader, TrainLoader
from mmtok.data.order import Order, Plan
from mmtok.data.reader import cache_folder, load_index
from mmtok.data.samples import materialise
from mmtok.data.transforms import bucket_sizes
from mmtok.data.urls import expand_urls

Shape = tuple[int, ...]


@dataclass
class Source:
    """One of several sources of training data. `weight` is its share of the steps."""

    shards: str | list[str]
    weight: float = 1.0


class ShardModule(LightningDataModule):
    """Base: `ShardData` (images) and `AudioData` say what a sample becomes by `items`, `groups` and `eval_shape`.

    train             shards (path, folder, glob, brace list, https), or a sample set, or weighted sources
    val, test         the same; read once, in index order. A sample set gives its held-out part
    batch_size        samples a step and rank
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
        self, train: str | list[str] | list[Source], val: str | list[str] | None, test: str | list[str] | None,
        batch_size: int, eval_batch_size: int | None, num_workers: int, seed: int, window: int,
        batches_per_epoch: int | None, text: bool, max_bad_fraction: float, pin_memory: bool,
        start_method: str | None, cache: str | None,
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # more ranks than evaluation batches
        self.train, self.val, self.test = _sources(train), val, test
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.num_workers, self.seed, self.window = num_workers, seed, window
        self.batches_per_epoch, self.text = batches_per_epoch, text
        self.max_bad_fraction = max_bad_fraction
        self.pin_memory, self.start_method = pin_memory, start_method
        self.cache = Path(cache) if cache else cache_folder()
        self._loader: TrainLoader | None = None
        self._resumed: dict[str, Any] | None = None
        check("batch_size", batch_size >= 1, "at least 1")
        check("num_workers", num_workers >= 0, "at least 0")
        check("batches_per_epoch", batches_per_epoch is None or batches_per_epoch >= 1, "at least 1, or null")
        check("start_method", start_method in (None, "fork", "spawn", "forkserver"), "fork, spawn or forkserver")

    # ---- what a modality says -----------------------------------------------------------------------------------

    def items(self, index: Index, training: bool) -> Items:
        """What decodes and transforms a sample."""
        raise NotImplementedError

    def groups(self, index: Index) -> list[tuple[NDArray[np.int64], list[Shape]]]:
        """Samples of one source that are drawn together, ascending (repeats allowed), and the sizes they may take."""
        raise NotImplementedError

    def eval_shape(self) -> Shape:
        """Size of evaluation samples."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Materialise sample sets (one process a machine)."""
        lists = [source.shards for source in self.train] + [self.val, self.test]
        for shards in lists:
            if isinstance(shards, str) and shards.startswith("samples:"):
                materialise(shards, self.cache)

    def train_dataloader(self) -> TrainLoader:
        """This rank's training batches, from the saved cursor if there is one."""
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        repeat = 0
        overfit = getattr(trainer, "overfit_batches", 0)
        if overfit:
            check("trainer.overfit_batches", isinstance(overfit, int), "a whole number of batches")
            repeat = overfit
        if self._loader is not None:
            self._resumed = self._loader.state_dict()
            self._loader.close()
        self._loader = self.train_loader(rank, world, self._in_flight if trainer else None, repeat)
        if self._resumed is not None:
            self._loader.load_state_dict(self._resumed)
        return self._loader

    def train_loader(
        self, rank: int, world: int, in_flight: Callable[[], int] | None = None, repeat: int = 0
    ) -> TrainLoader:
        """Training batches of one rank of `world`, without a Trainer."""
        index, streams, weights, sizes = self._streams()
        items = self.items(index, training=True)
        global_batch = self.batch_size * world
        plan = Plan([len(s.samples) for s in streams], weights, sizes, global_batch, self.seed)
        epoch = self.batches_per_epoch or max(1, sum(plan.lengths) // global_batch)
        dataset = TrainBatches(items, streams, self.seed, rank, self.batch_size)
        counter = BadCounter(self.max_bad_fraction, "data.train")
        return TrainLoader(
            dataset, plan, epoch, counter, self.num_workers, self.start_method, self.pin_memory, in_flight, repeat
        )

    def val_dataloader(self) -> EvalLoader | list[EvalLoader]:
        """Every key of `val` once."""
        return self._eval("data.val", self.val)

    def test_dataloader(self) -> EvalLoader | list[EvalLoader]:
        """Every key of `test` once."""
        return self._eval("data.test", self.test)

    def eval_loader(self, key: str, shards: str | list[str], rank: int, world: int) -> EvalLoader:
        """Evaluation batches of one rank of `world`; `key` is named in errors."""
        index = load_index(self._urls(shards, key, "heldout"), key)
        items = self.items(index, training=False)
        dataset = EvalBatches(items, self.eval_shape(), rank, world, self.eval_batch_size)
        return EvalLoader(dataset, self.max_bad_fraction, key, self.num_workers, self.start_method, self.pin_memory)

    def state_dict(self) -> dict[str, Any]:
        """The cursor: step, items per stream, counters. The same on every rank."""
        if self._loader is not None:
            return self._loader.state_dict()
        return self._resumed or {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a cursor made by `state_dict`."""
        if state:
            self._resumed = state
            if self._loader is not None:
                self._loader.load_state_dict(state)

    def teardown(self, stage: str) -> None:
        if self._loader is not None:
            self._loader.close()

    def _in_flight(self) -> int:
        # Between fetching a batch and the end of its step, `ready` is one ahead of `processed`.
        assert self.trainer is not None
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return progress.ready - progress.processed  # type: ignore[attr-defined]

    def _eval(self, key: str, shards: str | list[str] | None) -> EvalLoader | list[EvalLoader]:
        if shards is None:
            return []
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return self.eval_loader(key, shards, rank, world)

    def _urls(self, shards: str | list[str], key: str, split: str) -> list[str]:
        if isinstance(shards, str) and shards.startswith("samples:"):
            return expand_urls(str(materialise(shards, self.cache) / split), key)
        return expand_urls(shards, key)

    def _streams(self) -> tuple[Index, list[Stream], list[float], list[list[Shape]]]:
        """One index over all sources; per stream its samples, weight and sizes."""
        parts = [load_index(self._urls(s.shards, "data.train", "train")) for s in self.train]
        index = Index([shard for part in parts for shard in part.shards])
        streams, weights, sizes, first, shard = [], [], [], 0, 0
        for source, part in zip(self.train, parts, strict=True):
            starts = index.starts[shard : shard + len(part.shards) + 1]
            groups = [(first + samples, shapes) for samples, shapes in self.groups(part) if len(samples)]
            total = sum(len(samples) for samples, _ in groups)
            for samples, shapes in groups:
                counts = np.diff(np.searchsorted(samples, starts))
                streams.append(Stream(samples, Order(counts, self.seed, self.window)))
                weights.append(source.weight * len(samples) / total)
                sizes.append(shapes)
            first, shard = first + len(part), shard + len(part.shards)
        if not streams:
            raise ValueError("data.train: the shards hold no samples")
        return index, streams, weights, sizes


def _sources(train: str | list[str] | list[Source]) -> list[Source]:
    if isinstance(train, str):
        return [Source(train)]
    plain = [entry for entry in train if isinstance(entry, str)]
    if plain:
        check("train", len(plain) == len(train), "all addresses or all {shards, weight}")
        return [Source(plain)]
    check("train", bool(train), "not an empty list")
    return [entry for entry in train if isinstance(entry, Source)]


def check(key: str, holds: bool, wanted: str) -> None:
    """ValueError naming the YAML key, unless it holds."""
    if not holds:
        name = key if "." in key else f"data.{key}"
        raise ValueError(f"{name}: must be {wanted}")


def aspect_buckets(
    index: Index, sides: list[int], aspects: list[float] | None, multiple: int
) -> tuple[list[list[tuple[int, int]]], NDArray[np.int64]]:
    """(H, W) per side and aspect (squares without aspects); int64 [N], the aspect nearest in log to each sample's."""
    buckets = [bucket_sizes(side, aspects, multiple) if aspects else [(side, side)] for side in sides]
    if len(buckets[0]) == 1:
        return buckets, np.zeros(len(index), dtype=np.int64)
    sizes = index.sizes()
    if (sizes == 0).any():
        raise ValueError(
            f"data.aspects: {int((sizes == 0).any(1).sum())} samples lack a size in the index; run `mmtok shards "
            "check` and take the bad samples out"
        )
    aspect = np.log(sizes[:, 1] / sizes[:, 0])
    return buckets, np.abs(aspect[:, None] - np.log([w / h for h, w in buckets[0]])).argmin(1)
