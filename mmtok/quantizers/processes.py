"""What the processes of a run agree on, decided at call time: the process group often starts after the model is built.

Legend: n rows of one process, D dimensions, V codes. Without a process group every function is local.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def active() -> bool:
    """Whether this process belongs to a group now."""
    return dist.is_available() and dist.is_initialized()


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if active() else 1


def sum_over_processes(*tensors: Tensor) -> list[Tensor]:
    """The tensors, float32, summed over all processes in one message."""
    if not active():
        return list(tensors)
    packed = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(packed)
    parts = packed.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def all_finite(values: Tensor) -> bool:
    """Whether no process holds NaN or infinity."""
    finite = torch.isfinite(values).all().float()
    if active():
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
    return bool(finite)


def sample_rows(rows: Tensor, limit: int) -> Tensor:
    """At most `limit` distinct random rows [m, D] of each process, those of all processes in turn, equal everywhere."""
    picks = rows[torch.randperm(len(rows), device=rows.device)[:limit]]
    if not active():
        return picks
    padded = rows.new_zeros(limit, rows.shape[1])
    padded[: len(picks)] = picks
    count = torch.tensor([len(picks)], device=rows.device)
    parts = [torch.empty_like(padded) for _ in range(world())]
    counts = [torch.empty_like(count) for _ in parts]
    dist.all_gather(parts, padded)
    dist.all_gather(counts, count)
    held = torch.arange(limit, device=rows.device)[:, None] < torch.cat(counts)
    # ranks in turn, so that the first rows come from every rank's data
    return torch.stack(parts, 1)[held]


def nearest_over_processes(distances: Tensor, rows: Tensor) -> Tensor:
    """Row v [V, D] of the process whose distance [V] is the smallest; the lowest rank wins a tie."""
    if not active():
        return rows
    best = distances.clone()
    dist.all_reduce(best, op=dist.ReduceOp.MIN)
    rank = torch.full_like(distances, float(dist.get_rank())).where(distances == best, torch.inf)
    owner = rank.clone()
    dist.all_reduce(owner, op=dist.ReduceOp.MIN)
    mine = (owner == rank) & torch.isfinite(rank)
    chosen = torch.where(mine[:, None], rows, torch.zeros_like(rows))
    dist.all_reduce(chosen)
    return chosen
