"""What every metric is: a few additive tensors, summed once over processes, and a formula over the sums.

Never a mean of batch means or of rank means: a ragged last batch or uneven ranks would bend it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor


class Metric:
    """Base of the metrics. A subclass fills `states` in its constructor and adds to them in `update`.

    states  tensors by name on the CPU, float64 or int64, zero when nothing was seen; adding the states of two
            disjoint sets of items gives the states of their union
    """

    def __init__(self, **states: Tensor) -> None:
        for name, state in states.items():
            if state.dtype not in (torch.float64, torch.int64):
                raise TypeError(f"{type(self).__name__}.{name}: states are float64 or int64, got {state.dtype}")
        self.states = states
        self.reduced = False

    def add(self, name: str, value: Tensor) -> None:
        """Adds `value` (any device and dtype) to a state; RuntimeError once the states are the global ones."""
        if self.reduced:
            raise RuntimeError(f"{type(self).__name__}: update after all_reduce would be counted on one process only")
        self.states[name] += value.detach().to("cpu", self.states[name].dtype)

    def merge(self, other: Metric) -> None:
        """Adds the states of a metric of the same kind that saw other items."""
        for name, state in other.states.items():
            self.add(name, state)

    def compute(self) -> dict[str, float]:
        """Finished values by key; a key carries its protocol and matches [a-z0-9_]+."""
        raise NotImplementedError


class MeanMetric(Metric):
    """Mean over items of one number per item: the base of PSNR, SSIM and LPIPS."""

    key = ""

    def __init__(self) -> None:
        super().__init__(count=torch.zeros(1, dtype=torch.int64), total=torch.zeros(1, dtype=torch.float64))

    def scores(self, real: Tensor, fake: Tensor) -> Tensor:
        """float [B], one value per item, from uint8 images [B, 3, H, W]."""
        raise NotImplementedError

    def update(self, real: Tensor, fake: Tensor) -> Tensor:
        """Counts a batch of uint8 images [B, 3, H, W]; returns its scores, float64 [B] on the CPU."""
        scores = self.scores(real, fake).detach().to("cpu", torch.float64)
        self.add("count", torch.tensor([scores.numel()]))
        self.add("total", scores.sum(0, keepdim=True))
        return scores

    def compute(self) -> dict[str, float]:
        if not int(self.states["count"]):
            raise ValueError(f"{self.key}: no images were evaluated")
        return {self.key: float(self.states["total"] / self.states["count"])}


class KeyCount(Metric):
    """How many items were seen and skipped, and a checksum of names that does not depend on order or processes."""

    def __init__(self) -> None:
        super().__init__(**{name: torch.zeros(1, dtype=torch.int64) for name in ("count", "skipped", "checksum")})

    def update(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.add("count", torch.ones(1))
            self.add("checksum", torch.tensor([key_hash(key)]))

    def compute(self) -> dict[str, float]:
        return {"images": float(self.states["count"]), "skipped": float(self.states["skipped"])}


def key_hash(key: str) -> int:
    """A stable number in [0, 2^40) for a name: sums over 2^23 names stay exact in int64 and below 2^63."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=5).digest(), "little")


def all_reduce(metrics: Iterable[Metric]) -> None:
    """Replaces the states of all metrics by their sums over processes, in one collective per dtype.

    Without torch.distributed it only marks them finished. RuntimeError when called twice: sums would double.
    """
    metrics = list(metrics)
    for metric in metrics:
        if metric.reduced:
            raise RuntimeError(f"{type(metric).__name__}: all_reduce was called twice")
        metric.reduced = True
    if not (dist.is_available() and dist.is_initialized()):
        return
    # NCCL alone cannot reduce CPU tensors
    device = "cuda" if "gloo" not in dist.get_backend() and torch.cuda.is_available() else "cpu"
    for dtype in (torch.float64, torch.int64):
        slots = list(_states(metrics, dtype))
        if not slots:
            continue
        flat = torch.cat([metric.states[name].flatten() for metric, name in slots]).to(device)
        dist.all_reduce(flat)
        parts = flat.cpu().split([metric.states[name].numel() for metric, name in slots])
        for (metric, name), part in zip(slots, parts, strict=True):
            metric.states[name] = part.view_as(metric.states[name]).clone()


def _states(metrics: list[Metric], dtype: torch.dtype) -> Iterator[tuple[Metric, str]]:
    return ((m, name) for m in metrics for name, state in m.states.items() if state.dtype == dtype)
