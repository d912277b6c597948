"""The one global order: which sample is item i, and which items make batch j.

Legend: N samples of a stream, G global batch (all ranks), W window in shards.

A stream is an endless sequence of items: epoch 0 of its samples, then epoch 1, and so on. Batches are cut
from that sequence without looking at epoch borders, so a tail smaller than G opens the next epoch, and
nothing but a number has to be saved to continue. Every function here is pure: no state of a random
generator, no dependence on ranks, workers, platform or NumPy version.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def mix(*values: int) -> int:
    """A 64-bit hash of integers (splitmix64 finalizer, chained); the source of every random choice."""
    state = 0
    for value in values:
        state = (state ^ (value & _MASK)) + _GOLDEN & _MASK
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state


def mix_array(seed: int, numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    """uint64 [n]: one hash per number under a 64-bit seed."""
    with np.errstate(over="ignore"):
        state = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN) ^ np.uint64(seed & _MASK)
        for _ in range(2):
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state ^= state >> np.uint64(31)
    return state


class Order:
    """Endless order of the samples of one stream.

    counts  samples per shard; sample s of the stream has the number it has when shards are laid end to end
    seed    chooses the order
    window  shards that are open at once: shards are shuffled, cut into windows of W, and the samples of a
            window are shuffled together. A remote shard is therefore fetched once an epoch and cached whole

    `at(item)` returns (epoch, sample). Memory and time go with one window, not with N.
    """

    def __init__(self, counts: Sequence[int] | NDArray[np.int64], seed: int, window: int = 16) -> None:
        if window < 1:
            raise ValueError(f"data.window: needs at least one shard, got {window}")
        self.counts = np.asarray(counts, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self.seed, self.window = seed, window
        self._layouts: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self._windows: dict[tuple[int, int], NDArray[np.int64]] = {}
        if not len(self):
            raise ValueError("data.train: the shards hold no samples")

    def __len__(self) -> int:
        return int(self.starts[-1])

    def at(self, item: int) -> tuple[int, int]:
        """(epoch, sample) of item >= 0."""
        epoch, offset = divmod(item, len(self))
        _, bounds = self._layout(epoch)
        window = int(np.searchsorted(bounds, offset, side="right")) - 1
        return epoch, int(self._samples(epoch, window)[offset - bounds[window]])

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """int64 [N]: the permutation of a whole epoch."""
        shards, bounds = self._layout(epoch)
        return np.concatenate([self._samples(epoch, window) for window in range(len(bounds) - 1)])

    def _layout(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shuffled shard numbers, and the item offset where each window starts (plus N)."""
        if epoch not in self._layouts:
            shards = np.argsort(mix_array(mix(self.seed, epoch, 0), np.arange(len(self.counts))), kind="stable")
            ends = np.cumsum(self.counts[shards])
            cuts = ends[self.window - 1 :: self.window]
            bounds = np.unique(np.concatenate([[0], cuts, [len(self)]]))
            if len(self._layouts) > 1:
                del self._layouts[min(self._layouts)]
            self._layouts[epoch] = shards, bounds
        return self._layouts[epoch]

    def _samples(self, epoch: int, window: int) -> NDArray[np.int64]:
        """Shuffled samples of one window."""
        if (epoch, window) not in self._windows:
            shards, bounds = self._layout(epoch)
            ends = np.cumsum(self.counts[shards])
            inside = shards[(ends > bounds[window]) & (ends <= bounds[window + 1])]
            samples = np.concatenate([np.arange(self.starts[s], self.starts[s + 1]) for s in inside])
            keys = mix_array(mix(self.seed, epoch, 1), samples)
            if len(self._windows) > 2:
                del self._windows[min(self._windows)]
            self._windows[epoch, window] = samples[np.argsort(keys, kind="stable")]
        return self._windows[epoch, window]


@dataclass(frozen=True)
class Slot:
    """What batch `step` is made of: items [first, first + G) of a stream, at one size: (H, W), or (samples,)."""

    step: int
    stream: int
    first: int
    size: tuple[int, ...]


class Plan:
    """Batch number -> slot. Streams and sizes are drawn from (seed, step), hence equal on all ranks.

    lengths       samples per stream
    weights       share of the steps that each stream gets
    sizes         per stream the sizes it may take: (H, W), or (samples,); every stream lists the same number of sizes
    global_batch  G, items per step over all ranks

    The cursor is `state(step)`: the step, and the items each stream has given. It fits any G, so a run may
    continue with other ranks or another batch size.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        weights: Sequence[float],
        sizes: Sequence[Sequence[tuple[int, ...]]],
        global_batch: int,
        seed: int,
    ) -> None:
        self.lengths, self.sizes = tuple(lengths), tuple(tuple(s) for s in sizes)
        self.global_batch, self.seed = global_batch, seed
        share = np.asarray(weights, dtype=np.float64)
        if global_batch < 1:
            raise ValueError(f"data.batch_size: must be at least 1, got {global_batch}")
        if not np.all(np.isfinite(share)) or np.any(share < 0) or share.sum() <= 0:
            raise ValueError(f"data.train: weights must be positive numbers, got {list(weights)}")
        self._edges = np.cumsum(share / share.sum())[:-1]
        self._base_step, self._base_items = 0, [0] * len(self.lengths)

    def streams(self, start: int, stop: int) -> NDArray[np.int64]:
        """int64 [stop - start]: the stream of each step."""
        draws = mix_array(mix(self.seed, 2), np.arange(start, stop)) >> np.uint64(11)
        return np.searchsorted(self._edges, draws.astype(np.float64) * 2.0**-53, side="right").astype(np.int64)

    def items(self, step: int) -> list[int]:
        """Items each stream has given before `step`."""
        counts = np.bincount(self.streams(self._base_step, step), minlength=len(self.lengths))
        return [base + int(n) * self.global_batch for base, n in zip(self._base_items, counts, strict=True)]

    def slots(self, step: int) -> Iterator[Slot]:
        """Slots of step, step + 1, ... without end."""
        items = self.items(step)
        while True:
            for stream in self.streams(step, step + 1024).tolist():
                choice = mix(self.seed, 3, step) % len(self.sizes[stream])
                yield Slot(step, stream, items[stream], self.sizes[stream][choice])
                items[stream] += self.global_batch
                step += 1

    def state(self, step: int) -> dict[str, int | list[int]]:
        """The cursor before `step`, plain numbers only."""
        return {"step": step, "items": self.items(step), "lengths": list(self.lengths), "seed": self.seed}

    def resume(self, state: dict[str, int | list[int]]) -> int:
        """Continue from a saved cursor; returns its step. ValueError when the data is not the same."""
        if state["lengths"] != list(self.lengths) or state["seed"] != self.seed:
            raise ValueError(
                f"data.train: the checkpoint was made with {state['lengths']} samples a stream and seed "
                f"{state['seed']}, now there are {list(self.lengths)} and seed {self.seed}; restore the same data "
                "and seed, or start a new run from the weights alone"
            )
        step, items = state["step"], state["items"]
        assert isinstance(step, int) and isinstance(items, list)
        self._base_step, self._base_items = step, list(items)
        return step
