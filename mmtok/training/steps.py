"""Small tools of a manual training step."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn


@contextmanager
def uncounted(optimizer: LightningOptimizer) -> Iterator[None]:
    """Steps of `optimizer` inside do not advance `trainer.global_step`.

    Lightning sums the steps of all optimizers, so two of them would halve max_steps and bend every schedule. It offers
    no public switch; these two hooks are what its loop counts with (pinned by tests/contract/test_framework.py).
    """
    before, after = optimizer._on_before_step, optimizer._on_after_step
    optimizer._on_before_step = optimizer._on_after_step = lambda: None
    try:
        yield
    finally:
        optimizer._on_before_step, optimizer._on_after_step = before, after


@contextmanager
def frozen(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Parameters of `modules` take no gradient inside; gradients still flow through."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def seed_step(seed: int, batch: int, rank: int) -> None:
    """Makes every later random draw (torch, NumPy, random) a function of (seed, batch, rank).

    So a resumed run draws what the uninterrupted one would have drawn, with no generator state to keep.
    """
    digest = hashlib.blake2b(f"{seed}/{batch}/{rank}".encode(), digest_size=8).digest()
    value = int.from_bytes(digest, "little") >> 1
    torch.manual_seed(value)
    np.random.seed(value & 0xFFFFFFFF)
    random.seed(value)


def clip(parameters: list[nn.Parameter], limit: float | None) -> Tensor:
    """Norm of all gradients before they are scaled down to `limit`, float32 scalar."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm
