"""Parameter groups by name pattern, and learning-rate schedules as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import Optimizer

Named = list[tuple[str, nn.Parameter]]


class Schedule:
    """Factor on the learning rate at a generator step, 0-based; constant 1 here.

    warmup  steps over which it first rises linearly to 1
    """

    def __init__(self, warmup: int = 0) -> None:
        if warmup < 0:
            raise ValueError(f"schedule.warmup must not be negative, got {warmup}")
        self.warmup = warmup

    def __call__(self, step: int) -> float:
        return (step + 1) / self.warmup if step < self.warmup else self.after(step - self.warmup)

    def after(self, step: int) -> float:
        """Factor `step` steps after the warm-up."""
        return 1.0


class Constant(Schedule):
    """Warm-up, then the full learning rate."""


class Steps(Schedule):
    """Warm-up, then the learning rate times `factor` once more at every milestone (generator steps, ascending)."""

    def __init__(self, milestones: list[int], factor: float = 0.1, warmup: int = 0) -> None:
        super().__init__(warmup)
        if list(milestones) != sorted(milestones) or (milestones and milestones[0] < warmup):
            raise ValueError(f"schedule.milestones must ascend from schedule.warmup ({warmup}), got {milestones}")
        self.milestones, self.factor = list(milestones), factor

    def after(self, step: int) -> float:
        return self.factor ** sum(step + self.warmup >= milestone for milestone in self.milestones)


class Exponential(Schedule):
    """Warm-up, then the learning rate times `factor` at every generator step (DAC: 0.999996)."""

    def __init__(self, factor: float, warmup: int = 0) -> None:
        super().__init__(warmup)
        if not 0 < factor <= 1:
            raise ValueError(f"schedule.factor must lie in (0, 1], got {factor}")
        self.factor = factor

    def after(self, step: int) -> float:
        return self.factor**step


class _Decay(Schedule):
    def __init__(self, total: int, warmup: int = 0, floor: float = 0.0) -> None:
        super().__init__(warmup)
        if total <= warmup:
            raise ValueError(f"schedule.total ({total}) must exceed schedule.warmup ({warmup})")
        self.total, self.floor = total, floor

    def after(self, step: int) -> float:
        share = min(1.0, step / (self.total - self.warmup))
        return self.floor + (1 - self.floor) * self.shape(share)

    def shape(self, share: float) -> float:
        raise NotImplementedError


class Cosine(_Decay):
    """Warm-up, then half a cosine down to `floor` (a share of the peak) at step `total`; `floor` from there on."""

    def shape(self, share: float) -> float:
        return (1 + math.cos(math.pi * share)) / 2


class Linear(_Decay):
    """Warm-up, then a straight line down to `floor` (a share of the peak) at step `total`; `floor` from there on."""

    def shape(self, share: float) -> float:
        return 1 - share


def parameter_groups(
    named: Named, groups: dict[str, dict[str, float]], no_decay: Iterable[str]
) -> list[dict[str, Any]]:
    """Optimizer groups of trainable parameters.

    groups    pattern -> settings: `lr_scale` multiplies the learning rate, other keys go to the optimizer. The first
              pattern that matches a name wins
    no_decay  patterns of parameters without weight decay
    ValueError for a pattern that matches nothing.
    """
    no_decay = list(no_decay)
    for key, patterns in (("groups", list(groups)), ("no_decay", no_decay)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name, _ in named):
                raise ValueError(f"model.{key}: pattern {pattern!r} matches no trainable parameter")
    buckets: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        pattern = next((p for p in groups if fnmatchcase(name, p)), "")
        plain = any(fnmatchcase(name, p) for p in no_decay)
        buckets.setdefault((pattern, plain), []).append(parameter)
    return [
        {"params": parameters} | groups.get(pattern, {}) | ({"weight_decay": 0.0} if plain else {})
        for (pattern, plain), parameters in buckets.items()
    ]


def scale_learning_rates(optimizer: Optimizer) -> Optimizer:
    """Applies every group's `lr_scale` and keeps the peak as `initial_lr`, which `set_learning_rate` starts from."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = group["lr"] * group.pop("lr_scale", 1.0)
    return optimizer


def set_learning_rate(optimizer: Optimizer, factor: float) -> float:
    """Sets every group to its peak times `factor`; returns the first group's rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return optimizer.param_groups[0]["lr"]
