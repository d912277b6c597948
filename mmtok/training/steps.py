"""Small tools of a manual training step."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
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


def average_gradients(parameters: list[nn.Parameter], bucket_bytes: int = 64 << 20) -> None:
    """Replaces every gradient by its mean over all processes, in few messages.

    A parameter without gradient counts as zero where another process has one, and stays without where none has.
    """
    used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=parameters[0].device)
    dist.all_reduce(used, op=dist.ReduceOp.MAX)
    chosen = [p for p, flag in zip(parameters, used.tolist(), strict=True) if flag]
    for p in chosen:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    for bucket in _buckets([p.grad for p in chosen if p.grad is not None], bucket_bytes):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(tensors: list[Tensor], limit: int) -> Iterator[list[Tensor]]:
    """Neighbours of one dtype, up to `limit` bytes each."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.nbytes > limit or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket
