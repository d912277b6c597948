"""What the training process does: asks workers for batches in order, counts what was consumed and what was bad.

These are not DataLoaders but hold one, because Lightning would give a map-style DataLoader a sampler of its
own under DDP. Batch j is always served by worker j mod workers of the torch DataLoader, in order.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

from torch.utils.data import DataLoader, Sampler

from mmtok.data.batches import Bad, EvalBatches, Raw, TrainBatches
from mmtok.data.order import Plan, Slot
from mmtok.data.workers import begin, starting
from mmtok.types import Batch

log = logging.getLogger(__name__)

FIRST = 100  # the bad fraction is judged over at least this many samples


class BadCounter:
    """Counts skipped samples by reason, logs each with its key once, and stops a run that has too many."""

    def __init__(self, max_fraction: float, where: str) -> None:
        if not 0 <= max_fraction <= 1:
            raise ValueError(f"data.max_bad_fraction: a share between 0 and 1, got {max_fraction}")
        self.max_fraction, self.where = max_fraction, where
        self.seen, self.reasons = 0, Counter[str]()
        self._logged: set[str] = set()

    def add(self, samples: int, bad: list[Bad]) -> None:
        """Count a batch of `samples` good or replaced ones. ValueError past the allowed share."""
        self.seen += samples
        for one in bad:
            self.reasons[one.reason] += 1
            if one.key not in self._logged:
                self._logged.add(one.key)
                log.warning("%s: skipped %s (%s)", self.where, one.key, one.message)
        total = self.reasons.total()
        if bad and total > self.max_fraction * max(self.seen, FIRST):
            counts = ", ".join(f"{reason} {count}" for reason, count in sorted(self.reasons.items()))
            raise ValueError(
                f"{self.where}: {total} of {self.seen} samples could not be used ({counts}; last {bad[-1].key}), more "
                f"than data.max_bad_fraction={self.max_fraction}; run `mmtok shards check`, or raise the fraction"
            )


class TrainLoader:
    """Training batches from the consumed cursor on.

    len() is the nominal epoch, in batches. The workers keep running from
    one epoch to the next, so nothing that was decoded ahead is thrown away.
    in_flight  under a Trainer: how many batches were handed out but not trained on. The Trainer then ends the
               epochs; without it an iteration ends at the next multiple of len()
    """

    def __init__(
        self, dataset: TrainBatches, plan: Plan, epoch_batches: int, counter: BadCounter, workers: int,
        context: str | None, pin_memory: bool, in_flight: Callable[[], int] | None = None, repeat: int = 0,
    ) -> None:
        self.dataset, self.plan, self.epoch_batches, self.counter = dataset, plan, epoch_batches, counter
        self.workers, self.context, self.pin_memory = workers, context, pin_memory
        self.in_flight, self.repeat = in_flight, repeat
        self._handed = 0
        self._next = -1
        self._iterator: Iterator[Raw] | None = None

    def __len__(self) -> int:
        return self.epoch_batches

    @property
    def step(self) -> int:
        """Batches consumed by training since the start of the run."""
        return self._handed - (self.in_flight() if self.in_flight else 0)

    def __iter__(self) -> Iterator[Batch]:
        """Lazy: no worker starts before the first batch is asked for."""
        self._handed = self.step
        end = (self._handed // len(self) + 1) * len(self)
        while self.in_flight or self._handed < end:
            at = self._handed % self.repeat if self.repeat else self._handed
            if self._iterator is None or self._next != at:
                self._start(at)
            assert self._iterator is not None
            raw = _next(self._iterator)
            self._next = at + 1
            self._handed += 1
            self.counter.add(len(raw.keys), raw.bad)
            batch = raw.batch()
            yield batch.pin_memory() if self.pin_memory else batch

    def state_dict(self) -> dict[str, Any]:
        bad = {"seen": self.counter.seen, "reasons": dict(self.counter.reasons)}
        return {**self.plan.state(self.step), "bad": bad}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._handed = self.plan.resume(state)
        self._iterator = None
        self.counter.seen = state["bad"]["seen"]
        self.counter.reasons = Counter(state["bad"]["reasons"])

    def close(self) -> None:
        """Stop the workers."""
        self._iterator = None

    def _start(self, step: int) -> None:
        self._iterator = None  # the old workers end before new ones start
        self._iterator = _iterate(self.dataset, _Slots(self.plan, step), self.workers, self.context)


class EvalLoader:
    """Evaluation batches: every key exactly once over all ranks, ranks may be uneven, no collective."""

    def __init__(
        self, dataset: EvalBatches, max_bad_fraction: float, where: str, workers: int, context: str | None,
        pin_memory: bool,
    ) -> None:
        self.dataset, self.workers, self.context, self.pin_memory = dataset, workers, context, pin_memory
        self.max_bad_fraction, self.where = max_bad_fraction, where
        self.bad: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Batch]:
        counter = BadCounter(self.max_bad_fraction, self.where)
        self.bad = counter.reasons
        iterator = _iterate(self.dataset, range(len(self.dataset)), self.workers, self.context)
        for _ in range(len(self)):
            raw = _next(iterator)
            counter.add(len(raw.keys) + len(raw.bad), raw.bad)
            if raw.keys:
                batch = raw.batch()
                yield batch.pin_memory() if self.pin_memory else batch


class _Slots(Sampler[Slot]):
    """The endless sequence of slots; runs ahead of training by the prefetch."""

    def __init__(self, plan: Plan, step: int) -> None:
        self.plan, self.step = plan, step

    def __iter__(self) -> Iterator[Slot]:
        return self.plan.slots(self.step)


def _iterate(dataset: Any, sampler: Any, workers: int, context: str | None) -> Iterator[Raw]:
    loader: DataLoader[Raw] = DataLoader(
        dataset, batch_size=None, sampler=sampler, num_workers=workers, collate_fn=_same,  # type: ignore[arg-type]
        multiprocessing_context=context if workers else None, prefetch_factor=2 if workers else None,
        worker_init_fn=begin,
    )
    with starting(context) if workers else nullcontext():
        return iter(loader)


def _next(iterator: Iterator[Raw]) -> Raw:
    """The next batch. A user's mistake found in a worker is raised as the one line it was, without its traceback."""
    try:
        return next(iterator)
    except ValueError as error:
        _, found, message = str(error).rpartition("\nValueError: ")
        raise (ValueError(message.strip()) if found else error) from None


def _same(raw: Raw) -> Raw:
    return raw
